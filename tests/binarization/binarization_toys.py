"""What the tests of the binarization test share: images, a small classifier, and the test on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
from pytest_gradmask.defense import Defense
from pytest_gradmask.threat import ThreatModel
from tests.toys import (
    draw,
    seeded,
)

IMAGES = draw(8, 3, 8, 8)
THREAT = ThreatModel(0.1)
PGD = partial(pgd, steps=10)


def convnet(features: int = 32, seed: int = 0) -> nn.Sequential:
    """Two convolutions and a linear layer, for 3 x 8 x 8 images."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, features, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(features, 4),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=seeded(seed))
    return model.eval()


def on_toy(
    defense: nn.Module | Defense, attack: Callable[..., Tensor] = PGD, seed: int = 0, **arguments: Any
) -> BinarizationTest:
    labels = torch.arange(len(IMAGES)) % 4
    return binarization_test(
        attack, defense, IMAGES, labels, **{"threat": THREAT, "generator": seeded(seed), **arguments}
    )


def half_fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, threat: ThreatModel, **_: Any) -> Tensor:
    """One step of half of eps along the gradient of the logit margin."""
    points = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(logit_margin(model(points), labels).sum(), points)
    return threat.project(images + threat.eps / 2 * threat.step(gradient), images)
