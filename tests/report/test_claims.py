"""A published figure is refuted by what attacks leave, and by nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from pytest_gradmask import InputError, ThreatModel, Verdict, assert_claim
from tests.toys import KillGradient, audited, draw, linear, masked

pytestmark = pytest.mark.usefixtures("no_operations_found")
MANY = draw(100, 3, 8, 8, seed=5)


@pytest.fixture(scope="module")
def hidden() -> Any:
    return audited(masked(KillGradient), MANY, threat=ThreatModel(0.15), margin=0.1)


@pytest.fixture(scope="module")
def honest() -> Any:
    return audited(linear(), MANY, threat=ThreatModel(0.02), margin=0.2)


def test_a_claim_above_what_attacks_leave_is_refuted(hidden: Any) -> None:
    assert hidden.verdict is Verdict.MASKED
    claim = min(1.0, hidden.robust_accuracy.high + 0.05)
    with pytest.raises(AssertionError) as failure:
        assert_claim(hidden, robust_accuracy=claim, source="Table 2 of Nobody et al.")
    message = str(failure.value)
    assert message.startswith(f"Table 2 of Nobody et al. claims a robust accuracy of {claim:.1%} for Sequential, but")
    assert f"leave {hidden.robust_accuracy.value:.1%} of {hidden.total} images" in message
    assert f"at most {hidden.robust_accuracy.high:.1%} at 99% confidence" in message
    assert "Linf" in message
    assert re.search(r"\S+ alone breaks \d+\. Gradient", message)
    assert "the gradient is masked" in message
    assert ".." not in message


def test_a_lower_claim_is_compatible_with_a_mask(hidden: Any, honest: Any) -> None:
    """A claim below it is compatible also if the gradient is masked."""
    for audit in (hidden, honest):
        assert_claim(audit, robust_accuracy=audit.robust_accuracy.high, source="a paper")
        assert_claim(audit, robust_accuracy=0, source="a paper")


def test_a_claim_is_refuted_without_masking(honest: Any) -> None:
    with pytest.raises(AssertionError) as failure:
        assert_claim(replace(honest, clean=(False,) * 80 + honest.clean[80:]), robust_accuracy=0.95, source="x")
    assert "masked" not in str(failure.value)


def test_an_inconclusive_audit_supports_nothing(honest: Any) -> None:
    unknown = replace(honest, verdict=Verdict.INCONCLUSIVE, reasons=("square failed: no memory",))
    with pytest.raises(AssertionError, match=r"does not support it either: square failed"):
        assert_claim(unknown, robust_accuracy=0.1, source="a paper")


@pytest.mark.parametrize("claim", [72, -0.1, float("nan"), "0.7", True, None])
def test_a_claim_is_a_share(honest: Any, claim: Any) -> None:
    with pytest.raises(InputError, match=r"robust_accuracy=.*share"):
        assert_claim(honest, robust_accuracy=claim, source="a paper")


@pytest.mark.parametrize("source", ["", " ", None, 3])
def test_a_claim_has_a_source(honest: Any, source: Any) -> None:
    with pytest.raises(InputError, match="source="):
        assert_claim(honest, robust_accuracy=0.5, source=source)
