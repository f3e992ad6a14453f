"""What a verdict says of its evidence, word by word and figure by figure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pytest_gradmask.verdict.interim import InterimAnalysis
from pytest_gradmask.verdict.paired import (
    above_p,
    images_to_establish_gap,
    images_to_exclude_gap,
    lower_bound,
    upper_bound,
)
from pytest_gradmask.verdict.results import AttackResult, Gap, Prediction, Verdict
from pytest_gradmask.verdict.rule import decide, measure_gap
from pytest_gradmask.verdict.stats import (
    difference_bounds,
    mean_p,
)
from tests.verdict.test_rule import UNDERMINED, evidence, failed, judge, result

#: Level of a bound in a single analysis of the first attempt, and its share of the error.
FIRST, SHARE = 1 - 0.01 * 0.985, 0.985
#: Level of the last decision of the second attempt.
SECOND = 1 - 0.01 * 0.0075 * 0.8

MASKED_REASONS = (
    "of 20 images classified correctly, adaptive attacks break {excess}{average} that neither a gradient attack nor "
    "the placebo breaks: a "
    "gap of {gap}, above the margin of 25 percentage points",
    "bpda alone breaks 19; in a paired test, all adaptive attacks together against the placebo give p = {p:.2g}",
)


def test_the_reasons_of_masked_word_by_word() -> None:
    decision = judge(20, evidence(gradient=[0], adaptive=range(1, 20)))
    assert decision.gap is not None
    first, second = MASKED_REASONS
    expected = (first.format(excess=19, average="", gap=decision.gap), second.format(p=decision.gap.p_value))
    assert decision.reasons == expected


def test_reasons_of_a_randomized_defense() -> None:
    sure, lost = Prediction(1.0, 1.0, 10, True), Prediction(0.0, 0.0, 10, False)
    attacks = [
        replace(each, predictions={index: lost if each.name == "bpda" and index else sure for index in range(20)})
        for each in evidence(adaptive=range(1, 20))
    ]
    predictions = dict.fromkeys(range(20), sure)
    decision = decide([True] * 20, attacks, [], margin=0.25, confidence=0.99, predictions=predictions)
    assert decision.verdict is Verdict.MASKED
    assert decision.gap is not None
    assert decision.reasons[0] == MASKED_REASONS[0].format(excess=19, average=" on average", gap=decision.gap)


def test_chances_decide_whether_anything_is_left() -> None:
    # By single answers every image is broken; by votes each is right in every third forward.
    third = Prediction(1 / 3, 1 / 3, 300, False)
    predictions = dict.fromkeys(range(200), Prediction(1.0, 1.0, 10, True))
    attacks = [replace(each, predictions=dict.fromkeys(range(200), third)) for each in evidence(gradient=range(200))]
    decision = decide([True] * 200, attacks, [UNDERMINED], margin=0.25, confidence=0.99, predictions=predictions)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.reasons[0] == "zero-gradient: the gradient is exactly zero"


def test_a_gap_of_exactly_the_margin_is_not_above_it() -> None:
    decision = judge(400, evidence(adaptive=range(100)), margin=0.25)
    assert decision.gap is not None
    assert decision.gap.estimate == 0.25
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert (
        decision.reasons[0]
        == f"a gap of {decision.gap} leaves open whether it is above the margin of 25 percentage points"
    )


def test_by_default_there_is_one_look_at_all_images() -> None:
    attacks = evidence(gradient=[0], adaptive=range(1, 20))
    settings: dict[str, Any] = {"margin": 0.25, "confidence": 0.99}
    assert judge(20, attacks) == decide([True] * 20, attacks, [], analysis=InterimAnalysis(20), **settings)
    early = decide([True] * 20, attacks, [], analysis=InterimAnalysis(200, number=2), **settings)
    assert early.gap is not None
    assert early.gap == measure_gap([True] * 20, {}, attacks, 0.99, InterimAnalysis(200, number=2))
    assert early.gap.analyses == 2


def test_why_nothing_could_be_compared_word_by_word() -> None:
    nothing = "no adaptive attack could run, so there is nothing to compare the gradient attacks with"
    attacks = [result("apgd-ce", "gradient"), failed("bpda", "adaptive"), result("placebo", "placebo")]
    decision = judge(20, attacks)
    assert decision.reasons == ("bpda failed: RuntimeError: no such thing", nothing)
    decision = judge(20, [failed("apgd-ce", "gradient"), result("placebo", "placebo")])
    assert decision.reasons == ("apgd-ce failed: RuntimeError: no such thing",)
    decision = judge(20, [failed("apgd-ce", "gradient"), *evidence(adaptive=[1])])
    assert decision.gap == measure_gap([True] * 20, {}, evidence(adaptive=[1]), 0.99)


def test_what_a_failed_gradient_attack_has_broken_is_no_gap() -> None:
    gradient = replace(failed("apgd-ce", "gradient"), broken=tuple(range(15)))
    gap = measure_gap([True] * 20, {}, [gradient, *evidence(adaptive=range(20))[1:]], 0.99)
    assert gap is not None
    assert gap.excess == 5


def test_a_gap_needs_adaptive_attacks_and_a_placebo_only() -> None:
    gap = measure_gap([True] * 20, {}, evidence(adaptive=range(6))[1:], 0.99)
    assert gap is not None
    assert gap.excess == 6


def test_what_the_placebo_alone_breaks_is_a_reason() -> None:
    """What the placebo breaks beyond gradient attacks counts against them."""
    unconverged = (
        "the gradient attacks have not converged: the placebo alone breaks another {} percentage points; "
        "use a larger budget"
    )
    decision = judge(20, evidence(gradient=range(5), placebo=range(5, 15)))
    assert (decision.verdict, decision.reasons) == (Verdict.INCONCLUSIVE, (unconverged.format("50.0"),))
    decision = judge(20, evidence(gradient=range(5), placebo=range(15)))
    assert decision.reasons[0] == unconverged.format("50.0")
    assert judge(20, evidence(placebo=range(5))).verdict is Verdict.NOT_MASKED  # exactly the margin


def test_how_many_images_decide_word_by_word() -> None:
    decision = judge(20, evidence(adaptive=range(8), placebo=[19]), margin=0.1)
    needed = images_to_establish_gap(8 / 20, 1 / 20, SECOND)
    assert needed is not None
    assert decision.images_needed == math.ceil(1.05 * needed) > 20
    assert decision.reasons == (
        f"the gap of {decision.gap} is above the margin of 10 percentage points, but 20 images classified correctly "
        "do not decide",
        f"if it goes on like this, about {decision.images_needed} images decide, audited as attempt 2",
    )


def test_how_many_images_exclude_a_gap_word_by_word() -> None:
    decision = judge(20, evidence(adaptive=range(3)), margin=0.2)
    needed = images_to_exclude_gap(0.2, 3 / 20, 0.0, SECOND)
    assert needed is not None
    assert decision.images_needed == math.ceil(1.05 * needed)
    assert decision.reasons == (
        f"a gap of {decision.gap} leaves open whether it is above the margin of 20 percentage points",
        f"if it goes on like this, about {decision.images_needed} images decide, audited as attempt 2",
    )


def test_where_more_images_will_hardly_help_word_by_word() -> None:
    decision = judge(20, evidence(adaptive=range(5)))
    assert decision.reasons[-1] == (
        "more images of this kind will hardly decide: use a larger budget or another margin"
    )


def test_more_images_are_always_more_than_there_are() -> None:
    # A second attempt with fewer images would exclude a gap; this look has nearly no error.
    analysis = InterimAnalysis(60, upper_share=1e-5)
    decision = decide([True] * 60, evidence(), [], margin=0.2, confidence=0.95, analysis=analysis)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.images_needed == 61


def test_a_gap_figure_by_figure() -> None:
    attacks = [
        *evidence(gradient=[0], adaptive=range(8), placebo=[18, 19]),
        AttackResult("transfer", "adaptive", status="skipped", note="nothing to bypass"),
    ]
    low, high = lower_bound(7, 2, 20, FIRST), upper_bound(7, 2, 20, FIRST)
    expected = Gap(
        excess=7,
        placebo_only=2,
        total=20,
        estimate=0.25,
        low=low,
        high=high,
        low_level=FIRST,
        high_level=FIRST,
        p_value=above_p(7, 2, 20, 0.0) / SHARE,
        analyses=1,
    )
    assert measure_gap([True] * 20, {}, attacks, 0.99) == expected


def test_a_randomized_gap_figure_by_figure() -> None:
    sure, half = Prediction(1.0, 1.0, 10, True), Prediction(0.5, 0.5, 10, True)
    attacks = [
        replace(each, predictions={index: half if each.name == "bpda" and index < 12 else sure for index in range(20)})
        for each in evidence()
    ]
    gap = measure_gap([True] * 20, dict.fromkeys(range(20), sure), attacks, 0.99)
    differences = [0.5] * 12 + [0.0] * 8
    low, high = difference_bounds(differences, FIRST)
    assert gap == Gap(
        excess=6.0, placebo_only=0.0, total=20, estimate=0.3, low=low, high=high, low_level=FIRST,
        high_level=FIRST, p_value=mean_p(differences, 0.0, -1.0) / SHARE, analyses=1,
    )  # fmt: skip


def test_bounds_say_their_levels_and_widen_with_attempts() -> None:
    attacks = evidence(adaptive=range(16), placebo=[18])
    first, second, third = (
        measure_gap([True] * 20, {}, attacks, 0.99, InterimAnalysis(20, attempt=attempt)) for attempt in (1, 2, 3)
    )
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.low_level, second.low_level) == pytest.approx((FIRST, 1 - 0.01 * 0.0075))
    assert third.high_level == pytest.approx(1 - 0.01 * 0.015 / 6)
    for gap in (first, second, third):
        assert gap.low == lower_bound(16, 1, 20, gap.low_level)
        assert gap.high == upper_bound(16, 1, 20, gap.high_level)
    assert third.low < second.low < first.low < first.high < second.high < third.high
    assert second.p_value == pytest.approx(above_p(16, 1, 20, 0.0) / 0.0075)
