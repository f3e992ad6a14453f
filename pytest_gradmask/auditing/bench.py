"""One attack of a defense's plan at a time, to be timed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.budgets import Budget, get_budget
from pytest_gradmask.auditing.plan import (
    AttackSurface,
    PlannedAttack,
    Run,
    find_attack_surface,
    known_models,
    plan_attacks,
)
from pytest_gradmask.auditing.scoring import Scorer, subseed
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.probes.preflight import check_batch, check_defense, check_device
from pytest_gradmask.randomized.prediction import plan_sampler
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import AttackResult, Prediction, Proportion, accuracy

_CONFIDENCE = 0.99


@dataclass(slots=True)
class Bench:
    """A defense with its attacks, each of which may run many times.

    Attributes:
        names: of the attacks of its plan that can run.
        clean: for each image, whether it is classified correctly without an attack.
        predictions: of a randomized defense on each.
        scorer: runs and scores one attack.
        surface: the defense as its attacker sees it.
        budget: how hard its attacks try.
    """

    names: list[str]
    clean: list[bool]
    predictions: dict[int, Prediction]
    scorer: Scorer
    surface: AttackSurface
    budget: Budget

    def runner(self, attack: str | Run) -> Callable[[], AttackResult]:
        """A function that attacks all images that are classified correctly, and scores them, each time alike.

        Args:
            attack: a name of the plan's, or ``attack(model, images, labels, *, threat, generator) -> images``.

        Raises:
            InputError: no such attack, or it cannot run on this defense.
        """
        if isinstance(attack, str) and attack not in self.names:
            raise InputError(f"attack={attack!r}: does not run on this defense; use one of {', '.join(self.names)}")
        given = [index for index, kept in enumerate(self.clean) if kept]

        def run() -> AttackResult:
            # A fresh plan: each attack counts its own passes.
            planned = self._planned(attack)
            result = self.scorer.run(planned, given)
            if self.scorer.images.is_cuda:
                torch.cuda.synchronize(self.scorer.images.device)
            if result.status == "failed":
                raise RuntimeError(f"{planned.name} failed: {result.note}")
            return result

        return run

    def accuracy(self, result: AttackResult) -> Proportion:
        """Robust accuracy under one attack alone, bounds valid at 99 %."""
        return accuracy(self.clean, self.predictions, [result], _CONFIDENCE)

    def _planned(self, attack: str | Run) -> PlannedAttack:
        if isinstance(attack, str):
            return next(each for each in plan_attacks(self.surface, self.budget, True) if each.name == attack)
        name = getattr(attack, "__name__", "attack")
        return PlannedAttack(name, "gradient", attack, self.surface.oracle())


@contextmanager
def bench(
    defense: Defense | nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel | None = None,
    budget: str | Budget = "smoke",
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[Bench]:
    """Put a defense on the bench; the arguments are those of `auditing.audit`. On exit no trace is left.

    Raises:
        InputError, DefenseError: the input cannot be attacked; the message says what to change.
    """
    defense = as_defense(defense)
    threat = threat or ThreatModel()
    budget = get_budget(budget)
    check_batch(images, labels, threat)
    place = check_device(device)
    images, labels = images.detach().to(place), labels.detach().long().to(place)
    models = known_models(defense)
    with moved(models, place), no_trace(models, place):
        stream = RandomStream(subseed(seed, "defense"), place)
        look = Oracle(defense.model, stream, defense.outputs)
        with stream.active():
            seen = check_defense(defense, look, images, labels)
        surface = find_attack_surface(defense, stream, seen.classes, seen.randomized, images, threat, budget.eot)
        sampler = None
        if seen.randomized:
            mixture = surface.oracle(surface.attacked) if defense.members else None
            sampler, _ = plan_sampler(look, mixture, images, pilot=budget.pilot_samples, margin=budget.margin)
        scorer = Scorer(look, images, labels, threat, seed, sampler)
        clean, predictions = scorer.clean()
        names = [attack.name for attack in plan_attacks(surface, budget, True) if not attack.skip]
        yield Bench(names, clean, predictions, scorer, surface, budget)


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
