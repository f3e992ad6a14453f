"""Peak memory of an audit, beside that of AutoAttack on the same images. Each runs in a new process."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.defenses import find
from pytest_gradmask import ThreatModel, audit, load_dataset
from pytest_gradmask.auditing.research import autoattack

#: AutoAttack runs each of its attacks once, with few steps. More steps do not need more memory.
_STEPS, _QUERIES = 5, 100


def peak_memories(name: str, data: str, samples: int, *, device: str = "cpu") -> dict[str, Any]:
    """Peak MiB of the process (on a GPU: of torch), and the MiB before any attack.

    Args:
        name: of a fixture.
        data: specification of the images.
        samples: how many of them.
        device: torch device.
    """
    found = {which: apart(run, name, data, samples, device, device=device).mebibytes for which, run in _RUNS.items()}
    return {"defense": name, "images": samples, "mebibytes": found, "ratio": found["autoattack"] / found["audit"]}


def _audit(name: str, data: str, samples: int, device: str) -> None:
    images = load_dataset(data, samples=samples, seed=0)
    audit(find(name), images.images, images.labels, device=device, exhaustive=True)


def _autoattack(name: str, data: str, samples: int, device: str) -> None:
    images = load_dataset(data, samples=samples, seed=0)
    model = find(name).model.to(device).requires_grad_(False)
    attack = autoattack.upstream("autoattack").AutoAttack(
        model, norm="Linf", eps=ThreatModel().eps, version="standard", seed=0, device=device
    )
    attack.logger.setLevel("ERROR")
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = _STEPS
    attack.square.n_queries = _QUERIES
    attack.run_standard_evaluation(images.images.to(device), images.labels.to(device))


def _nothing(name: str, data: str, samples: int, device: str) -> None:
    load_dataset(data, samples=samples, seed=0)
    find(name).model.to(device)
    autoattack.upstream("autoattack")


_RUNS: dict[str, Callable[[str, str, int, str], None]] = {
    "nothing": _nothing,
    "audit": _audit,
    "autoattack": _autoattack,
}


@dataclass(frozen=True, slots=True)
class Apart:
    """What a function returned in a process of its own, and the peak memory of that process (on a GPU: of torch)."""

    result: Any
    mebibytes: float

    def above(self, base: Apart) -> Apart:
        """The same, with the memory above that of another process."""
        return Apart(self.result, self.mebibytes - base.mebibytes)


def apart(run: Callable[..., Any], *arguments: Any, device: str = "cpu") -> Apart:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (run, arguments, device))


def _measured(run: Callable[..., Any], arguments: tuple[Any, ...], device: str) -> Apart:
    result = run(*arguments)
    if device.startswith("cuda"):
        return Apart(result, torch.cuda.max_memory_allocated(device) / 2**20)
    unit = 1 if sys.platform == "darwin" else 1024
    return Apart(result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
