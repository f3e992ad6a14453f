"""Models that are broken in different directions, and handmade transfer matrices."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pytest_gradmask import (
    ThreatModel,
    TransferMatrix,
    transfer_matrix,
)
from pytest_gradmask.verdict.results import Proportion
from tests.toys import Half

LABELS = torch.arange(24) % 2
#: Each half of an image is 0.08 above or below the middle, as its label says.
IMAGES = (0.5 + 0.08 * (2.0 * LABELS - 1)).view(-1, 1, 1, 1).expand(-1, 1, 4, 8).contiguous()
THREAT = ThreatModel(0.1)
SETTINGS: dict[str, Any] = {"threat": THREAT, "steps": 10}


def half(columns: slice, shift: float = 0.0) -> Half:
    """Depends on some columns of an image only. Its decision boundary is ``shift`` below the middle."""
    weight = torch.zeros(1, 4, 8)
    weight[:, :, columns] = 1
    return Half(weight, bias=float(weight.sum() * (shift - 0.5))).eval()


def left(shift: float = 0.0) -> Half:
    return half(slice(0, 4), shift)


def right() -> Half:
    return half(slice(4, 8))


def measured(models: Mapping[str, nn.Module] | Iterable[nn.Module], **arguments: Any) -> TransferMatrix:
    """A transfer matrix on the images of this module."""
    return transfer_matrix(models, IMAGES, LABELS, **{**SETTINGS, **arguments})


def counts(rate: Proportion | None) -> tuple[float, int] | None:
    return None if rate is None else (rate.count, rate.total)


def made(fooled: Mapping[tuple[str, str], Iterable[int]], count: int, **arguments: Any) -> TransferMatrix:
    """A matrix from the fooling images of each source and target. All clean images are classified correctly."""
    names = tuple(dict.fromkeys(source for source, _ in fooled))
    correct = tuple(
        tuple(tuple(image not in set(fooled[source, target]) for image in range(count)) for target in names)
        for source in names
    )
    clean = ((True,) * count,) * len(names)
    plain = {"attack": "gradient", "threat": THREAT, "confidence": 0.99}
    return TransferMatrix(names=names, clean=clean, correct=correct, **{**plain, **arguments})


def pairwise(white_box: int, across: int, count: int = 100, names: str = "ab", **arguments: Any) -> TransferMatrix:
    """The attack on a model breaks it on the first ``white_box`` images, and the others on the first ``across``."""
    cells = itertools.product(names, repeat=2)
    return made({(a, b): range(white_box if a == b else across) for a, b in cells}, count, **arguments)
