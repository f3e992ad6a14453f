"""At how many images an audit looks, and that the looks together are wrong no more often than one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.stats import clopper_pearson


@given(st.integers(1, 20_000), st.floats(0.001, 0.9), st.floats(0.51, 0.9999))
def test_looks_share_the_error_and_end_with_all_images(images: int, margin: float, confidence: float) -> None:
    analyses = plan_analyses(images, margin, confidence)
    sizes = [analysis.images for analysis in analyses]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == images
    assert all(size >= min(20, images) for size in sizes)
    assert {analysis.number for analysis in analyses} == {len(analyses)}
    assert sum(analysis.upper_share for analysis in analyses) == pytest.approx(1)
    assert sum(1 - analysis.lower_level(confidence) for analysis in analyses) == pytest.approx(1 - confidence)
    assert sum(1 - analysis.upper_level(confidence) for analysis in analyses) == pytest.approx(1 - confidence)


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
def test_few_images_get_one_look(images: int, margin: float) -> None:
    assert plan_analyses(images, margin, 0.99) == [InterimAnalysis(images)]
    assert (InterimAnalysis(images).lower_level(0.99), InterimAnalysis(images).upper_level(0.99)) == (0.99, 0.99)


def test_a_large_audit_looks_early() -> None:
    assert plan_analyses(200, 0.05, 0.99)[0].images < 50
    assert plan_analyses(10_000, 0.02, 0.99)[0].images < 50
