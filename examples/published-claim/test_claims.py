"""Is a published robust accuracy higher than an audit allows? Run with ``pytest --gradmask``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import models
import pytest

from pytest_gradmask import Defense, assert_claim, assert_no_gradient_masking

CLAIMS = tomllib.loads((Path(__file__).parent / "claims.toml").read_text())


@pytest.mark.gradmask(eps=models.EPS, margin=0.2)
def test_the_claim_of_the_adversarially_trained_model_holds(gradmask: Any) -> None:
    images, labels = models.digits("test")
    audit = gradmask.audit(Defense(models.adversarial(), name="adversarial"), images[:100], labels[:100])
    assert_no_gradient_masking(audit)
    assert_claim(audit, robust_accuracy=CLAIMS["adversarial"]["robust_accuracy"], source="its authors")


@pytest.mark.gradmask(eps=models.EPS, margin=0.2)
def test_the_claim_of_the_rounded_model_is_refuted(gradmask: Any) -> None:
    """Its authors trusted their gradient attacks. Under these alone, the claim would hold."""
    images, labels = models.digits("test")
    audit = gradmask.audit(Defense(models.rounded(), name="rounded"), images[:100], labels[:100])
    claim = CLAIMS["rounded"]["robust_accuracy"]
    assert claim <= audit.gradient_accuracy.high
    with pytest.raises(AssertionError, match=r"claims a robust accuracy of .* the gradient is masked"):
        assert_claim(audit, robust_accuracy=claim, source="Their paper")


def test_the_claim_of_a_model_with_real_weights_holds(
    gradmask: Any, eval_batch: Any, request: pytest.FixtureRequest
) -> None:
    """With ``--model``, ``--claim`` and ``--gradmask-data``; set eps and norm by a marker, as above."""
    name, claim = request.config.getoption("model"), request.config.getoption("claim")
    if name is None or claim is None:
        pytest.skip("needs --model=NAME --claim=SHARE, and images by --gradmask-data")
    audit = gradmask.audit(Defense(models.published(name), name=name), *eval_batch)
    assert_claim(audit, robust_accuracy=claim, source=name)
