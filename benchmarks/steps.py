"""What one step of APGD costs: ours on the defense and around its front end, and upstream's on the defense."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import clock
from pytest_gradmask import Dataset, InputError, ThreatModel, apgd, bypassed
from pytest_gradmask.auditing.research import Oracle, RandomStream, autoattack, moved, no_trace

_PEER = "upstream"
_STEPS = 20


def step_costs(name: str, model: nn.Module, data: Dataset, *, device: str = "cpu", rounds: int = 9) -> dict[str, Any]:
    """Seconds an image and step, and the times upstream's step takes; medians of rounds in which attacks take turns.

    No attack stops early. What starts and ends a run of 20 steps is shared among them. Only images that the defense
    classifies correctly are attacked: upstream's would leave out the others, and seem the faster for it.
    """
    threat, place = ThreatModel(), torch.device(device)
    images, labels = data.images.to(place), data.labels.to(place)
    fronts = {where: None for where, _ in model.named_modules() if where.endswith("front_end")}
    with moved([model], place), no_trace([model], place):
        stream = RandomStream(0, place)
        with torch.no_grad():
            right = model(images).argmax(1) == labels
        if not right.any():
            raise InputError(f"data: {name} classifies none of {len(images)} images correctly; attack others")
        images, labels = images[right], labels[right]
        ours = partial(apgd, stop_early=False)
        attacks: dict[str, Callable[[], object]] = {
            _PEER: partial(_run, autoattack.apgd_ce, Oracle(model, stream), images, labels, threat),
            "ours": partial(_run, ours, Oracle(model, stream), images, labels, threat),
        }
        if fronts:
            around = Oracle(bypassed(model, fronts), stream)
            attacks["ours, BPDA"] = partial(_run, ours, around, images, labels, threat)
        now = clock(device)
        seconds: dict[str, list[float]] = {attack: [] for attack in attacks}
        for _ in range(1 + rounds):
            for attack, run in attacks.items():
                started = now()
                run()
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                seconds[attack].append((now() - started) / _STEPS / len(images))
    counted = {attack: each[1:] for attack, each in seconds.items()}  # the first round warms up
    ratios = {
        attack: [upstream / own for upstream, own in zip(counted[_PEER], each, strict=True)]
        for attack, each in counted.items()
        if attack != _PEER
    }
    return {
        "defense": name, "images": len(images), "steps": _STEPS, "rounds": rounds,
        "seconds": {attack: median(each) for attack, each in counted.items()},
        "ratios": {attack: median(each) for attack, each in ratios.items()},
        "spread": {attack: [min(each), max(each)] for attack, each in ratios.items()},
    }  # fmt: skip


def _run(
    attack: Callable[..., Tensor],
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
) -> object:
    return attack(oracle, images, labels, threat=threat, steps=_STEPS, generator=torch.Generator().manual_seed(0))
