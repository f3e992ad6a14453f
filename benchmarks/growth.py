"""How the cost of an audit grows: with images, pixels, classes, members of an ensemble and the size of the model.

Nothing breaks in a ball as small as that of these audits, and they are exhaustive. So every attack runs on every image:
no audit of that size costs more.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from scipy.stats import linregress
from torch import nn

from benchmarks.memory import apart
from benchmarks.records import clock
from pytest_gradmask import Defense, InputError, RandomizedEnsemble, ThreatModel, audit
from pytest_gradmask.auditing.research import every_query, get_budget

#: What is varied, and its values. All else is as in `_audit`.
AXES: dict[str, tuple[int, ...]] = {
    "images": (20, 60, 180, 540),
    "pixels": (32, 64, 128, 224),
    "classes": (10, 30, 100, 300, 1000),
    "members": (2, 4, 8, 16),
    "width": (16, 32, 64, 128),
}


def growth(axis: str, *, device: str = "cpu", values: tuple[int, ...] = ()) -> dict[str, Any]:
    """Seconds and peak memory of an audit for each value, and the exponents of their growth.

    Args:
        axis: a key of `AXES`.
        device: torch device.
        values: other values than those of `AXES`.

    Returns:
        ``rows``, each with the ``value``, ``seconds`` and ``mebibytes`` above those of a process that has only imported
        the package; ``exponent``: that of seconds, fitted to all values; and ``last``, to the last two.

    Raises:
        InputError: there is no such axis.
    """
    if axis not in AXES:
        raise InputError(f"growth: {axis!r} is not known; it can be {', '.join(AXES)}")
    start = apart(_nothing, axis, 0, device, device=device)
    rows = []
    for value in values or AXES[axis]:
        cost = apart(_audit, axis, value, device, device=device).above(start)
        rows.append({"value": value, "seconds": cost.result, "mebibytes": cost.mebibytes})
    logs = [(math.log(row["value"]), math.log(row["seconds"])) for row in rows]
    return {"axis": axis, "rows": rows, "exponent": _slope(logs), "last": _slope(logs[-2:])}


def passes(budget: str, *, images: int = 4) -> dict[str, Any]:
    """Forwards for each image of an audit in which nothing breaks; a backward counts as two.

    Args:
        budget: name of a budget.
        images: of the audit that is counted.

    Returns:
        ``attacks``: the forwards of each attack; ``forwards``: their sum; ``first``: what share of them an audit makes
        that ends with its verdict, on as many images as the budget has.
    """
    many = get_budget(budget).samples
    attacks, first = _passes(budget, images, exhaustive=True), _passes(budget, many, exhaustive=False)
    forwards = sum(attacks.values())
    return {
        "budget": budget, "images": images, "attacks": attacks, "forwards": forwards,
        "first": sum(first.values()) / forwards,
    }  # fmt: skip


def _passes(budget: str, images: int, *, exhaustive: bool) -> dict[str, float]:
    """Forwards of each attack, for each of so many images."""
    torch.manual_seed(0)
    model, batch = _network(16, 10), torch.rand(images, 3, 8, 8)  # the number of passes does not depend on the size
    with torch.no_grad():
        labels = model(batch).argmax(1)
    with every_query():  # in so small a ball attacks soon repeat themselves, and in others not
        found = audit(Defense(model), batch, labels, threat=ThreatModel(1e-6), budget=budget, exhaustive=exhaustive)
    return {each.name: (each.forwards + 2 * each.backwards) / images for each in found.attacks if each.attacked}


def _slope(points: list[tuple[float, float]]) -> float:
    return float(linregress(*zip(*points, strict=True)).slope)


def _nothing(_axis: str, _value: int, _device: str) -> float:
    return 0.0


def _audit(axis: str, value: int, device: str) -> float:
    """The seconds of one audit."""
    sizes = {"images": 20, "pixels": 32, "classes": 10, "members": 1, "width": 16} | {axis: value}
    torch.manual_seed(0)
    members = _alike(_network(sizes["width"], sizes["classes"]), sizes["members"])
    model = RandomizedEnsemble(members).eval() if axis == "members" else members[0]
    images = torch.rand(sizes["images"], 3, sizes["pixels"], sizes["pixels"])
    with torch.no_grad():
        labels = torch.stack([member(images) for member in members]).mean(0).argmax(1)
    defense = Defense(model, members=members if axis == "members" else [], name=axis)
    now = clock(device)
    started = now()
    with every_query():  # as in `_passes`
        found = audit(defense, images, labels, threat=ThreatModel(1e-6), budget="smoke", exhaustive=True, device=device)
    taken = now() - started
    if not all(len(attack.attacked) >= 0.9 * len(labels) for attack in found.attacks if attack.status == "done"):
        raise RuntimeError(f"{axis} {value}: not every attack was given every image, so its cost is not the largest")
    return taken


@torch.no_grad()
def _alike(network: nn.Module, count: int) -> list[nn.Module]:
    """The network and others that differ from it a little: all classify nearly every image alike."""
    others = [deepcopy(network) for _ in range(count - 1)]
    for other in others:
        for parameter in other.parameters():
            parameter.add_(1e-2 * parameter.abs().mean() * torch.randn_like(parameter))
    return [network, *others]


def _network(width: int, classes: int) -> nn.Module:
    """Two strided convolutions and a linear layer, with random weights."""
    first = nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    second = nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)).eval()
