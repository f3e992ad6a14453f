"""Time to a verdict, beside what it takes to run AutoAttack and then BPDA by hand on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.records import clock
from pytest_gradmask import Defense, ThreatModel, audit
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.execution.generators import random_state_kept
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.loading.datasets import Dataset

_CHUNK = 100  # images at a time, as audits do on a CPU
_BPDA_STEPS = 50

Progress = Callable[[object], None]


def time_to_verdict(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    budget: str = "ci",
    device: str = "cpu",
    seed: int = 0,
    enough: float = math.inf,
    stages: Path | None = None,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """One audit, then the same question by hand: AutoAttack ``standard``, and PGD with 50 steps around the front end.

    By hand nothing is compared or tested; all that is timed are the attacks. The audit is told nothing of the defense
    and keeps no cache. AutoAttack takes hours on a CPU: each of its attacks is kept in the folder ``stages``, and a
    measurement that was interrupted goes on after it. It is stopped where the work by hand has taken ``enough`` times
    as long as the audit: the ratio is then a lower bound, and what AutoAttack leaves is not known.
    """
    threat, place, timed = ThreatModel(), torch.device(device), _Stages(stages, clock(device), progress)

    def judge() -> dict[str, Any]:
        found = audit(
            defense, data.images, data.labels, threat=threat, budget=budget, device=device, seed=seed, progress=progress
        )
        return {
            "verdict": found.verdict.name, "looked_at": found.total, "clean": found.clean_accuracy.value,
            "gradient": found.gradient_accuracy.value, "all": found.robust_accuracy.value,
        }  # fmt: skip

    verdict = timed.run("audit", judge)
    model = defense.model
    images, labels = data.images.to(place), data.labels.to(place)
    with moved([model], place), no_trace([model], place), random_state_kept(place):
        attack = autoattack.upstream("autoattack").AutoAttack(
            model, norm="Linf", eps=threat.eps, version="standard", seed=seed, device=place
        )
        attack.logger.setLevel("ERROR")
        around = bypassed(model, {where: None for where, _ in model.named_modules() if where.endswith("front_end")})
        kept = timed.run("bpda", partial(_bpda, around, images, labels, threat, seed))["kept"].to(place)
        attacked, stopped = images.clone(), None
        try:
            for which in list(attack.attacks_to_run):
                attack.attacks_to_run = [which]  # on what the ones before have left, as all of them in one call
                left = (1 + enough) * timed.seconds["audit"] - sum(timed.seconds.values())
                with _stopped_after(left, model, timed.now):
                    done = timed.run(which, partial(_attacked, attack, model, attacked, images, labels))
                attacked = done["images"].to(place)
        except _EnoughError as error:
            stopped = which
            timed.seconds[which] = error.seconds
        left_standing = _right(model, attacked, labels)
    audited, by_bpda = timed.seconds["audit"], timed.seconds["bpda"]
    standard = sum(timed.seconds.values()) - audited - by_bpda
    return {
        "defense": name, "budget": budget, "seed": seed, "images": len(labels), **verdict,
        "seconds": audited, "autoattack_seconds": standard, "bpda_seconds": by_bpda,
        "ratio": (standard + by_bpda) / audited, "stopped": stopped,
        "autoattack": float(left_standing.float().mean()), "with_bpda": float((left_standing & kept).float().mean()),
    }  # fmt: skip


class _EnoughError(Exception):
    """So many seconds were enough."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


@contextmanager
def _stopped_after(seconds: float, model: nn.Module, now: Callable[[], float]) -> Iterator[None]:
    """Stop what runs inside at the first pass of the model after so many seconds."""
    started = now()

    def check(*_: object) -> None:
        if now() - started > seconds:
            raise _EnoughError(now() - started)

    hook = model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


class _Stages:
    """Parts of a measurement with the seconds they took, kept in a folder where there is one."""

    def __init__(self, folder: Path | None, now: Callable[[], float], progress: Progress) -> None:
        self.folder, self.now, self.progress = folder, now, progress
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the work returns, or has returned before."""
        file = None if self.folder is None else self.folder / f"{name}.pt"
        if file is not None and file.exists():
            found: dict[str, Any] = torch.load(file, weights_only=True)
        else:
            self.progress(name)
            started = self.now()
            found = work()
            found = {"found": found, "seconds": self.now() - started}
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replaced(file) as part:
                    torch.save(found, part)
        self.seconds[name] = found["seconds"]
        result: dict[str, Any] = found["found"]
        return result


def _attacked(
    attack: Any, model: nn.Module, attacked: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """The images after this attack, too; which of them stand is kept with them, as a randomized model forgets it."""
    attacked, standing = attacked.clone(), _right(model, attacked, labels)
    if standing.any():
        returned = attack.run_standard_evaluation(images[standing], labels[standing])
        attacked[standing] = (returned[0] if isinstance(returned, tuple) else returned).detach()
    return {"images": attacked}


def _bpda(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel, seed: int
) -> dict[str, Any]:
    chunks = zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
    return {"kept": torch.cat([_pgd(model, some, own, threat, seed) for some, own in chunks])}


def _right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(some).argmax(1) for some in images.split(_CHUNK)]) == labels


def _pgd(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel, seed: int) -> torch.Tensor:
    """Whether each image survives the PGD that one writes in ten lines."""
    generator = torch.Generator().manual_seed(seed)
    current = threat.random_start(images, generator)
    size = 2.5 * threat.eps / _BPDA_STEPS
    for _ in range(_BPDA_STEPS):
        current.requires_grad_(True)
        loss = nn.functional.cross_entropy(model(current), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, current)
        current = threat.project(current.detach() + size * gradient.sign(), images)
    return _right(model, current, labels)
