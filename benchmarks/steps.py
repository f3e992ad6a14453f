"""The cost of one step of APGD: ours on the defense and with a bypassed front end, and upstream's on the defense."""

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
    """Seconds per image and step, and ratios to upstream's step: medians of rounds in which attacks take turns.

    No attack stops early. The time at the start and the end of a run is divided among its 20 steps. Only images that
    the defense classifies correctly are attacked, because upstream's attack would skip the others and seem faster.
    """
    threat, torch_device = ThreatModel(), torch.device(device)
    images, labels = data.images.to(torch_device), data.labels.to(torch_device)
    front_ends = {path: None for path, _ in model.named_modules() if path.endswith("front_end")}
    with moved([model], torch_device), no_trace([model], torch_device):
        stream = RandomStream(0, torch_device)
        with torch.no_grad():
            correct = model(images).argmax(1) == labels
        if not correct.any():
            raise InputError(f"data: {name} classifies none of {len(images)} images correctly; use other images")
        images, labels = images[correct], labels[correct]
        ours = partial(apgd, stop_early=False)
        attacks: dict[str, Callable[[], object]] = {
            _PEER: partial(_run, autoattack.apgd_ce, Oracle(model, stream), images, labels, threat),
            "ours": partial(_run, ours, Oracle(model, stream), images, labels, threat),
        }
        if front_ends:
            attackable = Oracle(bypassed(model, front_ends), stream)
            attacks["ours, BPDA"] = partial(_run, ours, attackable, images, labels, threat)
        now = clock(device)
        seconds: dict[str, list[float]] = {attack: [] for attack in attacks}
        for _ in range(1 + rounds):
            for attack, run in attacks.items():
                started = now()
                run()
                if torch_device.type == "cuda":
                    torch.cuda.synchronize(torch_device)
                seconds[attack].append((now() - started) / _STEPS / len(images))
    counted = {attack: each[1:] for attack, each in seconds.items()}  # the first round is a warm-up
    ratios = {
        attack: [upstream / ours for upstream, ours in zip(counted[_PEER], each, strict=True)]
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
