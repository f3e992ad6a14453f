"""``python -m tests.devices.waits``: how often each attack makes a GPU wait, counted on the pretend device.

It stores the counts for docs/benchmarks.md. A device waits where a value is brought to Python, or a shape depends on
one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.records import machine, store
from pytest_gradmask import ThreatModel, apgd, pgd
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.bypass.operations.model import OperationsBypassed
from pytest_gradmask.attacks.bypass.operations.search import find_operations
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.randomized.streams import RandomStream
from tests.devices import pretend
from tests.toys import Quantize, draw, linear, masked, predictions, seeded

STEPS = (20, 60)


def _operations() -> nn.Module:
    model = masked(Quantize)
    return OperationsBypassed(model, find_operations(model, draw(8, 3, 8, 8, seed=5)))


#: Each attack with a model of the CPU that it follows. Nothing breaks at this eps: every step runs on all images.
ATTACKS: dict[str, tuple[Callable[..., Tensor], Callable[[], nn.Module]]] = {
    "pgd": (pgd, linear),
    "apgd": (apgd, linear),
    "apgd with eot=3": (partial(apgd, eot=3), linear),
    "bpda": (apgd, lambda: bypassed(masked(Quantize), {"0": None})),
    "bpda-operations": (apgd, _operations),
    "zero-order": (zero_order, linear),
}


def waits(name: str, device: torch.device) -> dict[str, int]:
    """How often a run of an attack makes a GPU wait, by its number of steps."""
    run, make = ATTACKS[name]
    images, model = draw(30, 3, 8, 8, seed=5), make()
    labels = predictions(model, images)
    model.to(device)
    found = {}
    for steps in STEPS:
        oracle = Oracle(model, RandomStream(0, device))
        with pretend.waiting() as counted:
            run(oracle, images.to(device), labels.to(device), threat=ThreatModel(1e-4), steps=steps, generator=seeded())
        found[str(steps)] = sum(counted.values())
    return found


def main() -> int:
    """Count and store. Returns the exit status."""
    pretend.set_up()
    rows = {name: waits(name, torch.device(pretend.NAME)) for name in ATTACKS}
    store("waits", {"waits": rows, "data": "embedded", "machine": machine("cpu")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
