"""Time to a verdict, beside what it takes to run AutoAttack and then BPDA by hand on the same images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.records import clock
from pytest_gradmask import Defense, ThreatModel, audit
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.bpda import bypassed
from pytest_gradmask.datasets import Dataset
from pytest_gradmask.isolation import moved, no_trace
from pytest_gradmask.randomness import random_state_kept

_CHUNK = 100  # images at a time, as audits do on a CPU
_BPDA_STEPS = 50

Progress = Callable[[str], None]


def time_to_verdict(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    budget: str = "ci",
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """One audit, then the same question by hand: AutoAttack ``standard``, and PGD with 50 steps around the front end.

    By hand nothing is compared or tested; all that is timed are the attacks. The audit is told nothing of the defense
    and keeps no cache.
    """
    threat, seconds = ThreatModel(), clock(device)
    started = seconds()
    found = audit(
        defense, data.images, data.labels, threat=threat, budget=budget, device=device, seed=seed, progress=progress
    )
    ours = seconds() - started
    model, place = defense.model, torch.device(device)
    images, labels = data.images.to(place), data.labels.to(place)
    with moved([model], place), no_trace([model], place), random_state_kept(place):
        progress("AutoAttack standard")
        started = seconds()
        attack = autoattack.upstream("autoattack").AutoAttack(
            model, norm="Linf", eps=threat.eps, version="standard", seed=seed, device=place
        )
        attack.logger.setLevel("ERROR")
        returned = attack.run_standard_evaluation(images, labels)
        attacked: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
        standard = seconds() - started
        progress("BPDA")
        started = seconds()
        around = bypassed(model, {where: None for where, _ in model.named_modules() if where.endswith("front_end")})
        kept = [
            _pgd(around, some, own, threat, seed) & _right(model, found_, own)
            for some, own, found_ in zip(
                images.split(_CHUNK), labels.split(_CHUNK), attacked.split(_CHUNK), strict=True
            )
        ]
        bpda = seconds() - started
    return {
        "defense": name, "budget": budget, "seed": seed, "images": len(labels),
        "verdict": found.verdict.name, "looked_at": found.total, "seconds": ours,
        "autoattack_seconds": standard, "bpda_seconds": bpda, "ratio": (standard + bpda) / ours,
        "clean": found.clean_accuracy.value, "gradient": found.gradient_accuracy.value,
        "all": found.robust_accuracy.value,
        "autoattack": float(_right(model, attacked, labels).float().mean()),
        "with_bpda": float(torch.cat(kept).float().mean()),
    }  # fmt: skip


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
