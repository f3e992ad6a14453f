"""An audit in a new process: ``python -m tests.project.fault_run CACHE DELAY [FAULT NUMBER]``.

Says when it begins, and prints its result and warnings as JSON.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from pytest_gradmask.auditing.run import audit
from pytest_gradmask.report.json import to_json
from tests.report.report_toys import timeless_json
from tests.toys import IMAGES, TINY, KillGradient, linear, predictions

_GIBIBYTE = 2**30


class Slow(nn.Module):
    """A masked toy that takes its time, and a gigabyte for each image of a batch that is too large for it."""

    def __init__(self, delay: float, at_most: int) -> None:
        super().__init__()
        self.front, self.model = KillGradient(), linear()
        self.delay, self.at_most = delay, at_most

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.delay)
        torch.empty(max(0, len(images) - self.at_most), _GIBIBYTE // 4)
        return self.model(self.front(images))  # type: ignore[no-any-return]


def main(cache: Path, delay: float, fault: str, number: int) -> None:
    """Audit; ``fault`` is none, or ``disk`` or ``memory`` of so many bytes."""
    torch.set_num_threads(1)
    model = Slow(delay, 8 if fault == "memory" else len(IMAGES)).eval()
    labels = predictions(linear(), IMAGES)
    print("ready", flush=True)
    if fault == "disk":  # no file may grow beyond this, as on a disk that is full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    if fault == "memory":  # so much more than now
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + number, used + number))
        with contextlib.suppress(RuntimeError), torch.no_grad():
            model(IMAGES)
            raise SystemExit("there is room for all images at once")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = audit(model, IMAGES, labels, budget=TINY, exhaustive=True, cache=cache)
    content = {**timeless_json(to_json(result)), "cached": None}
    print(json.dumps({"audit": content, "warnings": [str(warning.message) for warning in caught]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
