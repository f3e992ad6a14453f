"""Do attacks transfer between trained masks? The paper says that they do, where the backbone is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audits.trained_masks.package import Composite, Dataset, Mixture, ThreatModel, bypassed, pgd
from audits.trained_masks.package import transfer_matrix as matrix_of

_THREAT = ThreatModel(8 / 255)
_STEPS = 10


def transfer(front_ends: Mapping[str, nn.Module], backbones: Mapping[str, nn.Module], data: Dataset) -> dict[str, Any]:
    """PGD-10 and BPDA-10 at 8/255 Linf from each composite to the others, and on their randomized ensemble.

    Args:
        front_ends, backbones: by the name of the run; frozen and in eval mode.
        data: images to measure on. Transfer counts those that all composites classify correctly.

    Returns:
        ``common``: how many those are; ``gradient`` and ``bpda``: the share of them that is fooled, by source and
        target; ``ensemble``: accuracies on all images of the randomized ensemble, whose attack follows the mean of its
        members. An image counts by the share of members that classify it correctly.
    """
    composites = {name: Composite(front_ends[name], backbones[name]).eval() for name in front_ends}
    result: dict[str, Any] = {"images": len(data)}
    for attack in ("gradient", "bpda"):
        found = matrix_of(
            composites, data.images, data.labels, attack=pgd if attack == "gradient" else "bpda", threat=_THREAT,
            steps=_STEPS, bypass=["front_end"] if attack == "bpda" else None,
        )  # fmt: skip
        result["common"] = len(found.common)
        result[attack] = {
            source: {target: found.fooled(source, target).value for target in composites} for source in composites
        }
    members = list(composites.values())
    shares = [1 / len(members)] * len(members)
    around = [bypassed(member, {"front_end": None}) for member in members]
    result["ensemble"] = {
        "clean": _accuracy(members, data.images, data.labels),
        "pgd": _accuracy(members, _attacked(Mixture(members, shares), data), data.labels),
        "bpda": _accuracy(members, _attacked(Mixture(around, shares), data), data.labels),
    }
    return result


def _attacked(model: nn.Module, data: Dataset) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pgd(model, data.images, data.labels, threat=_THREAT, steps=_STEPS, generator=generator)


def _accuracy(members: Sequence[nn.Module], images: Tensor, labels: Tensor) -> float:
    """The mean share of members that are right."""
    with torch.no_grad():
        right = torch.stack([member(images).argmax(1) == labels for member in members])
    return float(right.float().mean())
