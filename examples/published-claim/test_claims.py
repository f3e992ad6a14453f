"""Is a published robust accuracy higher than an audit allows? Run with ``pytest --gradmask``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import models
import pytest

from pytest_gradmask import Audit, Defense, Verdict

CLAIMS = tomllib.loads((Path(__file__).parent / "claims.toml").read_text())


def check(audit: Audit, claim: float) -> None:
    """Fail unless nothing is masked and the claim is at most the upper bound of the robust accuracy at 99 %."""
    found = audit.robust_accuracy
    assert audit.verdict is Verdict.NOT_MASKED, f"verdict {audit.verdict.name}: {'; '.join(audit.reasons)}"
    assert claim <= found.high, f"the claim is {claim:.1%}, and the accuracy under all attacks is {found}"


@pytest.mark.gradmask(eps=models.EPS, margin=0.2)
def test_the_claim_of_the_adversarially_trained_model_holds(gradmask: Any) -> None:
    images, labels = models.digits("test")
    audit = gradmask.audit(Defense(models.adversarial(), name="adversarial"), images[:100], labels[:100])
    check(audit, CLAIMS["adversarial"]["robust_accuracy"])


@pytest.mark.gradmask(eps=models.EPS, margin=0.2)
def test_the_claim_of_the_rounded_model_is_refuted(gradmask: Any) -> None:
    """Its authors trusted their gradient attacks. Under these alone, the claim would hold."""
    images, labels = models.digits("test")
    audit = gradmask.audit(Defense(models.rounded(), name="rounded"), images[:100], labels[:100])
    claim = CLAIMS["rounded"]["robust_accuracy"]
    assert claim <= audit.gradient_accuracy.high
    assert claim > audit.robust_accuracy.high
    with pytest.raises(AssertionError, match="verdict MASKED"):
        check(audit, claim)


def test_the_claim_of_a_model_with_real_weights_holds(
    gradmask: Any, eval_batch: Any, request: pytest.FixtureRequest
) -> None:
    """With ``--model``, ``--claim`` and ``--gradmask-data``; set eps and norm by a marker, as above."""
    name, claim = request.config.getoption("model"), request.config.getoption("claim")
    if name is None or claim is None:
        pytest.skip("needs --model=NAME --claim=SHARE, and images by --gradmask-data")
    check(gradmask.audit(Defense(models.published(name), name=name), *eval_batch), claim)
