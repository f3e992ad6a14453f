"""Whatever it is given, an audit ends in a verdict or in an error of ours, and leaves no trace."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings

from pytest_gradmask import Verdict
from pytest_gradmask.auditing import audit
from pytest_gradmask.errors import GradmaskError
from tests.fuzzing import audits
from tests.toys import global_state


@settings(max_examples=200)
@given(audits())
def test_a_verdict_or_an_error_of_ours(case: dict[str, Any]) -> None:
    check(case)


@pytest.mark.nightly
@settings(max_examples=10_000)
@given(audits())
def test_a_verdict_or_an_error_of_ours_ten_thousand_times(case: dict[str, Any]) -> None:
    check(case)


def check(case: dict[str, Any]) -> None:
    """Audit, and look at what comes of it."""
    before = state()
    with warnings.catch_warnings(), contextlib.suppress(GradmaskError):
        warnings.simplefilter("ignore")
        result = audit(case["defense"](), case["images"], case["labels"], threat=case["threat"](), **case["arguments"])
        note(f"{result.verdict}: {result.reasons}")
        assert 0 <= result.robust_accuracy.value <= 1
        # A randomized defense is judged by votes, of which the images of more attacks get others.
        assert result.votes or result.robust_accuracy.value <= result.gradient_accuracy.value
        failed = [attack for attack in result.attacks if attack.status == "failed"]
        assert not (failed and result.verdict is Verdict.NOT_MASKED), failed
    assert state() == before


def state() -> tuple[object, ...]:
    """What an audit must leave as it was."""
    return (
        global_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), warnings.filters[:]
    )  # fmt: skip
