"""Claim 3 at its full strength: randomized ensembles under AutoAttack as published, and under an adaptive attack.

As published means upstream's own `run_standard_evaluation` with all its steps, targets and queries. An image that
resists takes minutes of a CPU core. So images are attacked a few at a time, in a fixed order, and a stored result is
gone on with.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from audits.trained_masks.package import (
    Composite,
    Dataset,
    Mixture,
    RandomizedEnsemble,
    ThreatModel,
    apgd,
    autoattack,
    bypassed,
    no_trace,
)  # fmt: skip

_THREAT = ThreatModel(8 / 255)
_ADAPTIVE_STEPS = 100
MEASURED = ("clean", "autoattack", "autoattack_expected", "adaptive")


def attacked_as_published(
    front_ends: Sequence[nn.Module], backbones: Sequence[nn.Module], data: Dataset, stored: Mapping[str, Any], *,
    version: str = "standard", chunk: int = 4,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Attack the next images of ``data``, and say after every few what holds for all so far.

    Args:
        front_ends, backbones: of the members, in eval mode, with no parameter that requires a gradient.
        data: images in a fixed order.
        stored: an earlier result of the same arguments; empty to begin.
        version: of AutoAttack, ``"standard"`` or ``"rand"``.
        chunk: images at a time.

    Yields:
        A result, with one number for each image so far. ``autoattack``: 1 if upstream's evaluation, which asks a member
        at random after each attack, calls the image robust. The others are shares of the members that classify it
        correctly: ``clean``; ``autoattack_expected``, at the points that AutoAttack returns; ``adaptive``, after APGD
        on the mean of the members, each with its front end bypassed (BPDA).
    """
    members = [Composite(*parts).eval() for parts in zip(front_ends, backbones, strict=True)]
    ensemble = RandomizedEnsemble(members).eval()
    around = Mixture([bypassed(member, {"front_end": None}) for member in members]).eval()
    found: dict[str, list[float]] = {name: list(stored.get(name, [])) for name in MEASURED}
    for start in range(len(found["clean"]), len(data), chunk):
        images, labels = (part[start : start + chunk] for part in (data.images, data.labels))
        with no_trace([ensemble, around], torch.device("cpu")):
            torch.manual_seed(start)  # of the choice of members
            points, robust = _autoattack(ensemble, images, labels, version, seed=start)
            adaptive = apgd(
                around, images, labels, threat=_THREAT, steps=_ADAPTIVE_STEPS,
                generator=torch.Generator().manual_seed(start),
            )  # fmt: skip
        found["autoattack"] += robust.float().tolist()
        for name, where in (("clean", images), ("autoattack_expected", points), ("adaptive", adaptive)):
            found[name] += _right(members, where, labels).tolist()
        yield {"version": version, "steps_adaptive": _ADAPTIVE_STEPS, "images": len(found["clean"]), **deepcopy(found)}


def _autoattack(
    ensemble: nn.Module, images: Tensor, labels: Tensor, version: str, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Upstream's evaluation: the points that it found, and whether each image is robust to it."""
    attack = autoattack.upstream("autoattack").AutoAttack
    evaluation = attack(ensemble, norm="Linf", eps=_THREAT.eps, version=version, seed=seed, device="cpu")
    # ``pyautoattack`` always returns the classes, too; ``autoattack`` has to be asked.
    asked = "return_labels" in inspect.signature(evaluation.run_standard_evaluation).parameters
    points, predicted = evaluation.run_standard_evaluation(images, labels, **({"return_labels": True} if asked else {}))
    return points, predicted == labels


@torch.no_grad()
def _right(members: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """For each image, the share of the members that classify it correctly."""
    return torch.stack([member(images).argmax(1) == labels for member in members]).float().mean(0)
