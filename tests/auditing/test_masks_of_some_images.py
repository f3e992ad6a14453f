"""A mask that only some images have, which the first images of a search do not show."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask import ThreatModel, Verdict, audit
from tests.auditing.known_radii import shares_of_radius
from tests.toys import seeded

EPS, CLASSES, MARKED = 2 / 255, 4, 15
WEIGHTS = torch.randn(CLASSES, 3072, generator=seeded(0))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return -gradient


def without_autograd(images: Tensor) -> Tensor:
    with torch.no_grad():
        return images * 0.999


def backward_reversed(images: Tensor) -> Tensor:
    return _Reversed.apply(images)  # type: ignore[no-any-return]


class Marked(nn.Module):
    """A linear classifier that treats images otherwise whose first pixel is nearly white."""

    def __init__(self, treat: object) -> None:
        super().__init__()
        self.weight, self.treat = nn.Parameter(WEIGHTS.clone()), treat
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        marked = images[:, 0, 0, 0].detach() > 0.97
        if marked.any() and callable(self.treat):
            treated = self.treat(images[marked])
            images = images.clone()
            images[marked] = treated
        return functional.linear(images.flatten(1) - 0.5, self.weight) / 10


@functools.cache
def some_robust() -> tuple[Tensor, Tensor]:
    """100 images that the radius suffices to misclassify, the first of them marked, and 100 for which it does not."""
    images, labels, share = shares_of_radius(WEIGHTS, EPS, 8000)
    weak, robust = ((share > 0.6) & (share < 0.9)).nonzero()[:100, 0], (share > 1.15).nonzero()[:100, 0]
    chosen = torch.cat([weak, robust])
    images, labels = images[chosen], labels[chosen]
    images[:MARKED, 0, 0, 0] = 1.0
    return images, labels


@pytest.mark.parametrize("treat", [without_autograd, backward_reversed])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.longer) for seed in (1, 2, 3))])
def test_a_mask_of_some_images(treat: object, seed: int) -> None:
    images, labels = some_robust()
    found = audit(Marked(treat), images, labels, threat=ThreatModel(EPS), budget="ci", seed=seed)
    assert found.verdict is not Verdict.NOT_MASKED
    assert found.robust_accuracy.value < 0.51
    assert found.operations or "misleading-loss" in [finding.id for finding in found.findings]


def test_no_mask_is_searched_once() -> None:
    images, labels = some_robust()
    said: list[str] = []
    found = audit(
        Marked(None), images, labels, threat=ThreatModel(EPS), budget="ci",
        progress=lambda event: said.append(str(event)),
    )  # fmt: skip
    assert found.verdict is Verdict.NOT_MASKED
    assert found.findings == ()
    assert not any("all over again" in text for text in said)
