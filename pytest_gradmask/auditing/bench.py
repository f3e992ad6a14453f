"""One attack of a defense's plan at a time, to be timed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.auditing.budgets import Budget, get_budget
from pytest_gradmask.auditing.plan import plan_attacks
from pytest_gradmask.auditing.planned import PlannedAttack, Run
from pytest_gradmask.auditing.prepare import prepared
from pytest_gradmask.auditing.scoring import Scorer
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.probes.preflight import check_batch, check_device
from pytest_gradmask.threat import PerturbationSet, ThreatModel
from pytest_gradmask.verdict.results import AttackResult, Prediction, Proportion, accuracy

_CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A defense with its attacks, each of which may run many times.

    Attributes:
        attacks: those of its plan that can run, by name.
        clean: for each image, whether it is classified correctly without an attack.
        predictions: of a randomized defense on each image.
        scorer: runs and scores one attack.
        surface: the defense as its attacker sees it.
        budget: how hard its attacks try.
    """

    attacks: dict[str, PlannedAttack]
    clean: list[bool]
    predictions: dict[int, Prediction]
    scorer: Scorer
    surface: AttackSurface
    budget: Budget

    def runner(self, attack: str | Run) -> Callable[[], AttackResult]:
        """A function that attacks all images that are classified correctly, and scores them. Every call does the same.

        Args:
            attack: a name of the plan's, or ``attack(model, images, labels, *, threat, generator) -> images``.

        Raises:
            InputError: no such attack, or it cannot run on this defense.
        """
        if isinstance(attack, str) and attack not in self.attacks:
            raise InputError(f"attack={attack!r}: does not run on this defense; use one of {', '.join(self.attacks)}")
        planned = self.attacks[attack] if isinstance(attack, str) else self._user_attack(attack)
        return partial(self.run, planned, self.correct)

    @property
    def correct(self) -> list[int]:
        """Indices of the images that are classified correctly without an attack."""
        return [index for index, right in enumerate(self.clean) if right]

    def run(self, attack: PlannedAttack, indices: Sequence[int]) -> AttackResult:
        """Attack the images at these indices, and wait for the result.

        Raises:
            RuntimeError: the attack failed.
        """
        result = self.scorer.run(attack, indices)
        if self.scorer.images.is_cuda:
            torch.cuda.synchronize(self.scorer.images.device)
        if result.status == "failed":
            raise RuntimeError(f"{attack.name} failed: {result.note}")
        return result

    def accuracy(self, result: AttackResult) -> Proportion:
        """Robust accuracy under one attack alone, bounds valid at 99 %."""
        return accuracy(self.clean, self.predictions, [result], _CONFIDENCE)

    def _user_attack(self, attack: Run) -> PlannedAttack:
        name = getattr(attack, "__name__", "attack")
        return PlannedAttack(name=name, kind="gradient", access="gradient", run=attack, model=self.surface.oracle())


@contextmanager
def bench(
    defense: Defense | nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet | None = None,
    budget: str | Budget = "smoke",
    device: str = "cpu",
    seed: int = 0,
    exhaustive: bool = False,
) -> Iterator[Bench]:
    """Put a defense on the bench. The arguments are those of `pytest_gradmask.audit`. On exit no trace is left.

    Attacks are those of an audit that ends with its verdict, or of an exhaustive one, in which they give no image up.

    Raises:
        InputError, DefenseError: the input cannot be attacked; the message says what to change.
    """
    defense = as_defense(defense)
    threat = threat or ThreatModel()
    budget = get_budget(budget)
    check_batch(images, labels, threat)
    where = check_device(device)
    images, labels = images.detach().to(where), labels.detach().long().to(where)
    with prepared(defense, images, labels, threat=threat, budget=budget, margin=budget.margin, seed=seed) as ready:
        clean, predictions = ready.scorer.clean()
        planned = plan_attacks(ready.surface, budget, quick=not exhaustive)
        yield Bench(
            attacks={attack.name: attack for attack in planned if not attack.skip},
            clean=clean,
            predictions=predictions,
            scorer=ready.scorer,
            surface=ready.surface,
            budget=budget,
        )


def forget_peak(device: torch.device) -> None:
    """Start to measure peak memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not everywhere may a process do so; the peak is then that of its whole life
            return


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes since `forget_peak`: that of the GPU, or what the process held at once; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return None
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def extra_info(
    bench: Bench, result: AttackResult, seconds: Sequence[float], device: torch.device, peak: int | None
) -> dict[str, Any]:
    """What belongs beside a timing, as plain data.

    Args:
        bench: where the attack ran.
        result: of its last run; all are alike.
        seconds: of each run.
        device: where it ran.
        peak: bytes; see `peak_memory`.
    """
    share, images = bench.accuracy(result), max(len(result.attacked), 1)
    return {
        "images": images,
        "seconds_per_image": min(seconds) / images,
        "forwards_per_image": result.forwards / images,
        "backwards_per_image": result.backwards / images,
        "peak_memory": peak,
        "robust_accuracy": [share.value, share.low, share.high],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }
