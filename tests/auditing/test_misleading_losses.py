"""Losses that lead away from a misclassification, and losses of which only one has a gradient."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask import Audit, ThreatModel, Verdict, audit
from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.attacks.pgd import apgd, pgd
from tests.auditing.known_radii import shares_of_radius
from tests.toys import IMAGES, TINY, draw, linear, predictions, seeded

EPS = 2 / 255
CLASSES = 5
WEIGHTS = torch.randn(CLASSES, 3072, generator=seeded(0))


class Shaped(nn.Module):
    """A linear classifier without a submodule, whose logits are shaped. No decision changes.

    Args:
        shape: ``plain``; ``peaked``: the lead over each other class grows up to a peak, falls, and grows again far
            away; ``drawn near``: the largest logit is drawn near to the second; ``unsure of noise``: logits are small
            where neighbouring pixels differ.
        peak: the lead at the peak.
    """

    def __init__(self, shape: str, peak: float = 0.5) -> None:
        super().__init__()
        self.weight, self.shape, self.peak = nn.Parameter(WEIGHTS.clone()), shape, peak
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = functional.linear(images.flatten(1) - 0.5, self.weight) / 10
        if self.shape == "peaked":
            lead = logits.amax(1, keepdim=True) - logits
            return -(lead / self.peak * torch.exp(1 - lead / self.peak) + 0.05 * functional.relu(lead - 8))
        if self.shape == "drawn near":
            values, classes = logits.topk(2, 1)
            return logits.scatter(1, classes[:, :1], values[:, 1:] + 0.1 * (values[:, :1] - values[:, 1:]))
        if self.shape == "unsure of noise":
            noise = images.flatten(1).diff(dim=1).abs().mean(1, keepdim=True)
            return logits * torch.exp(500 * (1 / 3 - noise))
        return logits


@functools.cache
def breakable() -> tuple[Tensor, Tensor]:
    """Images, and their classes, that a perturbation of 50 to 90 % of the radius misclassifies."""
    images, labels, share = shares_of_radius(WEIGHTS, EPS, 4000)
    chosen = ((share > 0.5) & (share < 0.9)).nonzero()[:40, 0]
    return images[chosen], labels[chosen]


def shaped(shape: str, peak: float = 0.5, *, exhaustive: bool = False) -> Audit:
    images, labels = breakable()
    return audit(Shaped(shape, peak), images, labels, threat=ThreatModel(EPS), budget="smoke", exhaustive=exhaustive)


@pytest.mark.parametrize("exhaustive", [False, True], ids=["verdict first", "exhaustive"])
@pytest.mark.parametrize("peak", [0.2, 0.5, 0.8])
def test_a_loss_that_leads_away(peak: float, exhaustive: bool) -> None:
    found = shaped("peaked", peak, exhaustive=exhaustive)
    assert found.verdict is Verdict.MASKED
    assert found.robust_accuracy.value < 0.3
    assert "misleading-loss" in [finding.id for finding in found.findings]


@pytest.mark.parametrize("shape", ["plain", "drawn near", "unsure of noise"])
def test_what_is_broken_is_not_said_to_be_robust(shape: str) -> None:
    for exhaustive in (False, True):
        found = shaped(shape, exhaustive=exhaustive)
        assert found.verdict is Verdict.NOT_MASKED
        assert found.robust_accuracy.value == 0
        assert not any(finding.undermines_attacks for finding in found.findings)


@dataclass(frozen=True)
class Box:
    """The Linf ball, as a set of the user's."""

    eps: float = 0.05
    bounds: tuple[float, float] = (0.0, 1.0)

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return (images + (perturbed - images).clamp(-self.eps, self.eps)).clamp(*self.bounds)

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        return self.project(images + self.eps * (2 * torch.rand(images.shape, generator=generator) - 1), images)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return gradient.sign()

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        return ((perturbed - images).abs() <= self.eps + 1e-6).flatten(1).all(1)


class Saturated(nn.Module):
    """An honest classifier whose softmax saturates, with normal noise on the images."""

    def __init__(self, classes: int, scale: float, noise: float) -> None:
        super().__init__()
        self.model, self.scale, self.noise = linear(classes), scale, noise
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.noise:
            images = images + self.noise * torch.randn_like(images)
        return self.model(images) * self.scale  # type: ignore[no-any-return]


@pytest.mark.parametrize("exhaustive", [False, True], ids=["verdict first", "exhaustive"])
@pytest.mark.parametrize("threat", [Box(), ThreatModel(0.05)], ids=["a set", "a ball"])
@pytest.mark.parametrize(("classes", "noise"), [(2, 0.0), (2, 0.02), (3, 0.0), (5, 0.0), (5, 0.02)])
def test_a_softmax_that_saturates_is_no_mask(
    classes: int, noise: float, threat: Box | ThreatModel, exhaustive: bool
) -> None:
    images = draw(40, 3, 8, 8)
    found = audit(
        Saturated(classes, 1e4, noise), images, predictions(linear(classes), images), threat=threat, budget=TINY,
        exhaustive=exhaustive,
    )  # fmt: skip
    assert found.verdict is Verdict.NOT_MASKED


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_restarts_take_losses_in_turn(attack: object) -> None:
    assert callable(attack)
    model, labels = Saturated(4, 1e6, 0), predictions(linear(), IMAGES)
    fooled = []
    for loss, restarts in ((cross_entropy, 2), ([cross_entropy, logit_margin], 1), ([cross_entropy, logit_margin], 2)):
        found = attack(
            model, IMAGES, labels, threat=ThreatModel(0.05), steps=10, restarts=restarts, loss=loss, generator=seeded()
        )
        fooled.append(int((model(found).argmax(1) != labels).sum()))
    assert fooled[0] < 12
    assert fooled[1] < 12
    assert fooled[2] > 18
