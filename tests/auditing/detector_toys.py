"""Detectors with known behaviour, and audits of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.defense import Defense
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit
from tests.toys import audited, draw, linear, predictions

REJECTED = 4


def on_grid(*shape: int, seed: int) -> Tensor:
    """Images with values that are multiples of 1/16."""
    return (16 * draw(*shape, seed=seed)).round() / 16


class OffGrid(nn.Module):
    """A perfect detector for images on the grid: it rejects every perturbed image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        perturbed = ((16 * images - (16 * images).round()).abs() > 0).flatten(1).any(1)
        rejection = logits.amax(1) + 10 * perturbed - 5
        return torch.cat([logits, rejection[:, None]], 1)


class TwoHalves(nn.Module):
    """Classifies the left half of an image, and rejects it unless a second classifier of the right half agrees.

    Only a joint attack breaks it: it has to change both halves.
    """

    def __init__(self, front_end: nn.Module | None = None) -> None:
        super().__init__()
        self.left, self.right = linear(seed=0, shape=(3, 8, 4)), linear(seed=1, shape=(3, 8, 4))
        self.front_end = front_end or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.left(images[..., :4])
        disagreement = logit_margin(self.right(self.front_end(images[..., 4:])), logits.argmax(1))
        return torch.cat([logits, (logits.amax(1) + disagreement)[:, None]], 1)


def agreeing(count: int) -> tuple[Tensor, Tensor]:
    """Images whose halves have the same class, and these classes."""
    images = on_grid(1000, 3, 8, 8, seed=1)
    model = TwoHalves()
    left, right = predictions(model.left, images[..., :4]), predictions(model.right, images[..., 4:])
    return images[left == right][:count], left[left == right][:count]


def detector_audit(defense: Defense | nn.Module, **arguments: object) -> Audit:
    images, labels = agreeing(60)
    return audited(defense, images, **{"labels": labels, "threat": ThreatModel(0.1), **arguments})


def perfect_audit(*, declared: bool) -> Audit:
    images = on_grid(60, 3, 8, 8, seed=0)
    model = OffGrid(linear()).eval()
    defense = Defense(model, rejects=REJECTED) if declared else Defense(model)
    return audited(defense, images, labels=predictions(linear(), images), threat=ThreatModel(0.06))
