"""How robust are randomized defenses? Run with ``pytest --gradmask``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from randomized import EPS, Noise, RandomizedEnsemble, Rounded, classifier, digits, trained
from torch import Tensor, nn

from pytest_gradmask import Defense, assert_gradient_masking, assert_no_gradient_masking

#: 60 images are enough for a margin of 25 percentage points, and take seconds.
pytestmark = pytest.mark.gradmask(eps=EPS, margin=0.25)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Test images with their labels."""
    pictures, labels = digits("test")
    return pictures[:60], labels[:60]


def test_noise_slows_attacks_down_and_hides_nothing(gradmask: Any, images: Any) -> None:
    """The audit detects that predictions are random, averages gradients (EOT) and judges by repeated forwards."""
    torch.manual_seed(0)
    noisy = trained(nn.Sequential(Noise(), *classifier()))
    audit = gradmask.audit(Defense(noisy, name="noise"), *images)
    assert_no_gradient_masking(audit)
    assert "randomized" in {finding.id for finding in audit.findings}
    assert audit.predictions  # accuracies are mean probabilities of a correct prediction, not counts of images


def test_an_ensemble_of_members_without_gradients_masks(gradmask: Any, images: Any) -> None:
    """With known members, the probability of a correct prediction is exact for each image, without sampling."""
    members = []
    for seed, levels in enumerate((8, 12, 16)):
        torch.manual_seed(seed)
        members.append(nn.Sequential(Rounded(levels), trained(classifier(8 + 4 * seed))).eval())
    ensemble = RandomizedEnsemble(members).eval()
    audit = gradmask.audit(Defense(ensemble, members=members, name="ensemble"), *images)
    assert_gradient_masking(audit)
    assert all(predictions.number == 0 for predictions in audit.predictions.values())  # nothing was sampled
