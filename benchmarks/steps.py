"""What one step of APGD costs: ours on the defense and around its front end, and upstream's on the defense."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.records import clock
from pytest_gradmask import ThreatModel
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.bpda import bypassed
from pytest_gradmask.attacks.gradient import apgd
from pytest_gradmask.attacks.oracle import Oracle, RandomStream
from pytest_gradmask.datasets import Dataset
from pytest_gradmask.isolation import moved, no_trace

_STEPS = 10


def step_costs(name: str, model: nn.Module, data: Dataset, *, device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Seconds an image and step, the least of some rounds in which the attacks take turns.

    What starts an attack and what follows its last step is taken off: the difference of runs of 10 steps and of 20.
    No attack stops early.
    """
    threat, place = ThreatModel(), torch.device(device)
    images, labels = data.images.to(place), data.labels.to(place)
    fronts = {where: None for where, _ in model.named_modules() if where.endswith("front_end")}
    with moved([model], place), no_trace([model], place):
        stream = RandomStream(0, place)
        ours = partial(apgd, stop_early=False)
        attacks: dict[str, Callable[[int], object]] = {
            "upstream": partial(_run, autoattack.apgd_ce, Oracle(model, stream), images, labels, threat),
            "ours": partial(_run, ours, Oracle(model, stream), images, labels, threat),
        }
        if fronts:
            around = Oracle(bypassed(model, fronts), stream)
            attacks["ours, BPDA"] = partial(_run, ours, around, images, labels, threat)
        seconds = {(attack, steps): float("inf") for attack in attacks for steps in (_STEPS, 2 * _STEPS)}
        now = clock(device)
        for _ in range(rounds):
            for attack, steps in seconds:
                started = now()
                attacks[attack](steps)
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                seconds[attack, steps] = min(seconds[attack, steps], now() - started)
    each = {
        attack: (seconds[attack, 2 * _STEPS] - seconds[attack, _STEPS]) / _STEPS / len(images) for attack in attacks
    }
    return {
        "defense": name, "images": len(images), "rounds": rounds, "seconds": each,
        "ratios": {attack: each["upstream"] / each[attack] for attack in attacks if attack != "upstream"},
    }  # fmt: skip


def _run(
    attack: Callable[..., torch.Tensor],
    oracle: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    steps: int,
) -> object:
    return attack(oracle, images, labels, threat=threat, steps=steps, generator=torch.Generator().manual_seed(0))
