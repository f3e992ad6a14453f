"""At how many images an audit looks, and that the looks together are wrong no more often than one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradmask.verdict.interim import InterimAnalysis, attempt_share, plan_analyses
from pytest_gradmask.verdict.stats import clopper_pearson


@given(st.integers(1, 20_000), st.floats(0.001, 0.9), st.floats(0.51, 0.9999), st.integers(1, 100))
def test_analyses_share_the_error(images: int, margin: float, confidence: float, attempt: int) -> None:
    analyses, whole = plan_analyses(images, margin, confidence, attempt), attempt_share(attempt)
    sizes = [analysis.images for analysis in analyses]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == images
    assert all(size >= min(20, images) for size in sizes)
    assert {analysis.number for analysis in analyses} == {len(analyses)}
    assert sum(analysis.upper_share for analysis in analyses) == pytest.approx(1)
    for attacks in (1, 4):
        completes = [False] * (attacks - 1) + [True]
        shares = [analysis.lower_share(attacks, complete=each) for analysis in analyses for each in completes]
        assert len(shares) == analyses[0].decisions(attacks)
        assert sum(shares) == pytest.approx(whole)
    assert sum(1 - analysis.upper_level(confidence) for analysis in analyses) == pytest.approx(whole * (1 - confidence))


def test_all_attempts_together_have_the_error_of_one() -> None:
    shares = [Fraction(985, 1000), *(Fraction(15, 1000 * number * (number - 1)) for number in range(2, 1001))]
    assert [attempt_share(number) for number in range(1, 1001)] == pytest.approx([float(share) for share in shares])
    assert sum(shares) == 1 - Fraction(15, 1000 * 1000) < 1
    assert [round(attempt_share(number), 5) for number in (1, 2, 3, 4, 11)] == [0.985, 0.0075, 0.0025, 0.00125, 0.00014]


@pytest.mark.parametrize(("images", "margin"), [(200, 0.05), (1000, 0.02), (100, 0.25)])
def test_two_analyses_can_exclude_a_gap(images: int, margin: float) -> None:
    def broken(analysis: InterimAnalysis) -> int:
        """Images that may fall without a gap of the margin; -1 for none."""
        counts = np.arange(analysis.images)
        high = clopper_pearson(counts, analysis.images, analysis.upper_level(0.99))[1]
        return int((high < margin).sum()) - 1

    analyses = plan_analyses(images, margin, 0.99)
    early = [analysis for analysis in analyses[:-1] if broken(analysis) >= 0]
    assert early
    assert early[0].images <= 0.75 * images
    assert broken(analyses[-1]) == broken(InterimAnalysis(images))


@pytest.mark.parametrize(("images", "margin"), [(1, 0.25), (20, 0.25), (38, 0.1)])
def test_few_images_get_one_analysis(images: int, margin: float) -> None:
    assert plan_analyses(images, margin, 0.99) == [InterimAnalysis(images, after_each_attack=True)]
    alone = InterimAnalysis(images)
    assert (alone.lower_share(7, complete=True), alone.upper_level(0.99)) == pytest.approx((0.985, 0.99015))
    again = InterimAnalysis(images, attempt=2)
    assert (again.lower_share(7, complete=True), again.upper_level(0.99)) == pytest.approx((0.0075, 0.999925))


def test_the_last_decision_has_most_of_the_error() -> None:
    first, *_, last = plan_analyses(200, 0.05, 0.99)
    assert last.lower_share(4, complete=True) == pytest.approx(0.985 * 0.8)
    assert last.lower_share(4, complete=False) == first.lower_share(4, complete=True) < 0.02


def test_a_large_audit_has_an_early_analysis() -> None:
    assert plan_analyses(200, 0.05, 0.99)[0].images < 50
    assert plan_analyses(10_000, 0.02, 0.99)[0].images < 50
