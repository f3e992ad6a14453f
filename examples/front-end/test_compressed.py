"""Is the defense robust, or does it only look robust? Run with ``pytest --gradmask``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed import EPS, Compressed, LowPass, classifier, digits, trained
from torch import Tensor, nn

from pytest_gradmask import (
    Defense,
    assert_clean_accuracy_retained,
    assert_gradient_masking,
    assert_robust_accuracy,
)

#: 100 images are enough for a margin of 15 percentage points, and take seconds.
pytestmark = pytest.mark.gradmask(eps=EPS, margin=0.15)


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    """A classifier without a defense."""
    torch.manual_seed(0)
    return trained(classifier())


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Test images with their labels."""
    pictures, labels = digits("test")
    return pictures[:100], labels[:100]


def test_the_front_end_costs_no_clean_accuracy(plain: nn.Sequential, images: Any) -> None:
    assert_clean_accuracy_retained(nn.Sequential(Compressed(), plain).eval(), plain, *images, within=0.05)


def test_as_published_it_masks(gradmask: Any, plain: nn.Sequential, images: Any) -> None:
    """The audit gets no hint on what to bypass. It finds the front end by itself."""
    audit = gradmask.audit(Defense(nn.Sequential(Compressed(), plain).eval(), name="compression"), *images)
    assert_gradient_masking(audit)
    # The accuracy that a paper would have reported, and the accuracy under all attacks.
    assert audit.gradient_accuracy.value > 0.8
    assert audit.robust_accuracy.value < 0.7


def test_without_rounding_and_adversarially_trained_it_is_robust(gradmask: Any, images: Any) -> None:
    """Passes only if the audit is also `NOT_MASKED`: otherwise the robust accuracy means nothing."""
    torch.manual_seed(0)
    robust = trained(nn.Sequential(LowPass(), *classifier()), adversarially=True)
    assert_robust_accuracy(gradmask.audit(Defense(robust, name="low-pass"), *images), at_least=0.5)
