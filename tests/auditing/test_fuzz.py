"""Whatever it is given, an audit ends in a verdict or in an error of ours, and leaves no trace."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings

from pytest_gradmask import Verdict
from pytest_gradmask.auditing.run import audit
from pytest_gradmask.errors import GradmaskError
from tests.auditing.fuzzing import audits
from tests.toys import global_state


@pytest.mark.longer
@pytest.mark.parametrize("cases", [100, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_a_verdict_or_an_error_of_ours(cases: int, record_property: Callable[[str, object], None]) -> None:
    ends: Counter[str] = Counter()

    @settings(max_examples=cases)
    @given(audits())
    def run(case: dict[str, Any]) -> None:
        ends[check(case)] += 1

    run()
    record_property("tries", sum(ends.values()))
    record_property("result", ", ".join(f"{count} {end}" for end, count in ends.most_common()))


def check(case: dict[str, Any]) -> str:
    """Audit, and look at what comes of it: the verdict, or an error of ours."""
    before, end = state(), "errors of ours"
    with warnings.catch_warnings(), contextlib.suppress(GradmaskError):
        warnings.simplefilter("ignore")
        result = audit(case["defense"](), case["images"], case["labels"], threat=case["threat"](), **case["arguments"])
        note(f"{result.verdict}: {result.reasons}")
        end = f"`{result.verdict.name}`"
        assert 0 <= result.robust_accuracy.value <= 1
        # A randomized defense is judged by votes, of which the images of more attacks get others.
        assert result.predictions or result.robust_accuracy.value <= result.gradient_accuracy.value
        failed = [attack for attack in result.attacks if attack.status == "failed"]
        # Where gradient attacks leave less than the margin, no other attack could open a gap of it.
        left = len(result.survivors(result.of_kind("gradient", "placebo"))) / max(1, sum(result.clean))
        waived = left < result.margin and {attack.kind for attack in failed} == {"adaptive"}
        assert not failed or waived or result.verdict is not Verdict.NOT_MASKED, failed
    assert state() == before
    return end


def state() -> tuple[object, ...]:
    """What an audit must leave as it was."""
    return (
        global_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), warnings.filters[:]
    )  # fmt: skip
