"""Exact tests and intervals, against scipy, by enumeration and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from pytest_gradmask.verdict.stats import (
    accuracy_bounds,
    clopper_pearson,
    difference_bounds,
    images_to_exclude,
    mcnemar_p,
    mean_p,
)

ROUNDING = 1e-12


@pytest.mark.parametrize(("trials", "upper"), [(20, 0.2057), (200, 0.0228), (1000, 0.0046)])
def test_bound_of_no_broken_image(trials: int, upper: float) -> None:
    low, high = clopper_pearson(0, trials, 0.99)
    assert low == 0
    assert high == pytest.approx(upper, abs=5e-5)
    assert high == pytest.approx(1 - 0.01 ** (1 / trials))


@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (1, 5), (5, 5), (7, 20), (199, 200), (0, 1), (1, 1)])
def test_clopper_pearson_is_scipys(successes: int, trials: int, confidence: float) -> None:
    theirs = binomtest(successes, trials).proportion_ci(2 * confidence - 1, method="exact")
    assert clopper_pearson(successes, trials, confidence) == pytest.approx((theirs.low, theirs.high))


def test_clopper_pearson_of_no_trials_knows_nothing() -> None:
    assert clopper_pearson(0, 0, 0.99) == (0, 1)


@pytest.mark.parametrize("confidence", [0.8, 0.99])
@pytest.mark.parametrize("trials", [1, 7, 30])
def test_clopper_pearson_covers_every_proportion(trials: int, confidence: float) -> None:
    bounds = [clopper_pearson(count, trials, confidence) for count in range(trials + 1)]
    for step in range(101):
        truth = step / 100
        chances = binom.pmf(range(trials + 1), trials, truth)
        assert sum(p for p, (low, _) in zip(chances, bounds, strict=True) if low <= truth) >= confidence - ROUNDING
        assert sum(p for p, (_, high) in zip(chances, bounds, strict=True) if high >= truth) >= confidence - ROUNDING


@pytest.mark.parametrize(("ours", "theirs"), [(1, 0), (0, 1), (5, 5), (9, 2), (40, 21), (3, 30)])
def test_mcnemar_is_the_exact_binomial_test(ours: int, theirs: int) -> None:
    expected = binomtest(ours, ours + theirs, 0.5, alternative="greater").pvalue
    assert mcnemar_p(ours, theirs) == pytest.approx(expected)


def test_mcnemar_without_a_discordant_image() -> None:
    assert mcnemar_p(0, 0) == 1


def outcomes(trials: int) -> Iterator[tuple[int, int]]:
    """Every (ours, theirs) that ``trials`` images can show."""
    return ((ours, theirs) for ours in range(trials + 1) for theirs in range(trials + 1 - ours))


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.25, 0.9, 0.995])
def test_images_to_exclude_at_a_rate_of_zero(margin: float, confidence: float) -> None:
    smallest = next(n for n in range(1, 1000) if clopper_pearson(0, n, confidence)[1] < margin)
    assert images_to_exclude(margin, 0.0, confidence) == smallest


@pytest.mark.parametrize(("margin", "rate"), [(0.25, 0.1), (0.05, 0.01), (0.02, 0.015)])
def test_images_to_exclude_suffices_and_one_fewer_does_not(margin: float, rate: float) -> None:
    needed = images_to_exclude(margin, rate, 0.99)
    assert needed is not None
    assert clopper_pearson(round(rate * needed), needed, 0.99)[1] < margin
    assert clopper_pearson(round(rate * (needed - 1)), needed - 1, 0.99)[1] >= margin


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_margin_that_the_rate_reaches(rate: float) -> None:
    """No number of images excludes a margin that the rate reaches."""
    assert images_to_exclude(0.05, rate, 0.99) is None


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.2])
@pytest.mark.parametrize("count", [20, 80])
def test_bounds_of_a_difference_cover(count: int, mean: float) -> None:
    generator = np.random.default_rng(0)
    low = high = 0
    for _ in range(150):
        values = np.clip(mean + generator.choice([-0.7, 0.1, 0.6], count), -1, 1)
        bounds = difference_bounds(values.tolist(), 0.9)
        low += bounds[0] <= mean
        high += bounds[1] >= mean
    # 150 tries at 90 % cover fewer than 123 times once in a thousand.
    assert min(low, high) >= 123


def test_bounds_of_a_difference_are_narrow_where_nothing_differs() -> None:
    for count, width in ((20, 0.225), (200, 0.026), (1000, 0.0052)):
        low, high = difference_bounds([0.0] * count, 0.99)
        assert low == pytest.approx(-high)
        assert 0 < high < width


def test_bounds_of_a_difference_know_nothing_without_values() -> None:
    assert difference_bounds([], 0.99) == (-1, 1)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_bounds_of_a_difference_invert_the_test(confidence: float) -> None:
    """Bounds of a difference are where the test starts to reject."""
    values = [0.4, 0.5, -0.1, 0.0, 0.3] * 12
    low, high = difference_bounds(values, confidence)
    assert mean_p(values, low, -1) < 1 - confidence < mean_p(values, low + 1e-5, -1)
    turned = [-value for value in values]
    assert mean_p(turned, -high, -1) < 1 - confidence < mean_p(turned, -high + 1e-5, -1)


def test_p_of_a_mean_is_rarely_small_where_the_mean_is_not_above() -> None:
    generator = np.random.default_rng(1)
    rejected = sum(mean_p(generator.choice([-0.5, 0.5], 50).tolist(), 0, -1) < 0.05 for _ in range(500))
    assert rejected <= 40  # 500 times 5 % exceeds 40 once in five hundred


def test_p_of_a_mean_sees_a_difference() -> None:
    assert mean_p([0.3, 0.2, 0.0, 0.4] * 25, 0, -1) < 1e-6
    assert mean_p([-0.3, 0.2, 0.0, 0.0] * 25, 0, -1) == 1
    assert mean_p([], 0, -1) == 1


@given(st.lists(st.floats(0, 1), max_size=60), st.sampled_from([0.9, 0.99]))
def test_bounds_of_an_accuracy_are_wide_enough(chances: list[float], confidence: float) -> None:
    """Bounds of an accuracy hold its estimate and contain the binomial ones."""
    low, high = accuracy_bounds(chances, confidence)
    assert 0 <= low <= high <= 1
    if chances:
        assert low <= sum(chances) / len(chances) + ROUNDING
        assert high >= sum(chances) / len(chances) - ROUNDING
    whole = [float(round(chance)) for chance in chances]
    exact = clopper_pearson(int(sum(whole)), len(whole), confidence)
    wide = accuracy_bounds(whole, confidence)
    assert wide[0] <= exact[0]
    assert exact[1] <= wide[1]


def test_bounds_of_an_accuracy_cover() -> None:
    generator = np.random.default_rng(2)
    truth = 0.6
    covered = 0
    for _ in range(500):
        low, high = accuracy_bounds(generator.beta(0.6, 0.4, 80).tolist(), 0.9)
        covered += low <= truth <= high
    assert covered >= 400  # both bounds together hold at 80 % at least


def test_exact_shares_that_miss_a_whole_number_by_rounding() -> None:
    assert accuracy_bounds([1 / 3] * 9, 0.99) == accuracy_bounds([1.0, 1.0, 1.0] + [0.0] * 6, 0.99)


@pytest.mark.parametrize(
    ("chances", "below", "above"), [([0.7, 0.7], 1, 2), ([0.8, 0.8, 0.0], 1, 2), ([1 / 3] * 3, 1, 1)]
)
def test_accuracy_of_chances_is_between_that_of_whole_numbers(chances: list[float], below: int, above: int) -> None:
    strict = 1 - 0.05 / math.e
    low, high = (clopper_pearson(right, len(chances), strict) for right in (below, above))
    assert accuracy_bounds(chances, 0.95) == pytest.approx((low[0], high[1]), rel=1e-9)
