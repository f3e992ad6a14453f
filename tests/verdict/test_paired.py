"""Exact unconditional tests of paired proportions: level, power, and agreement with brute force."""

from __future__ import annotations

import time
from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats

from pytest_gradmask.verdict import paired
from pytest_gradmask.verdict.paired import (
    above_p,
    below_p,
    evidence,
    images_to_establish_gap,
    images_to_exclude_gap,
    lower_bound,
    rejected_below,
    score,
    upper_bound,
)
from pytest_gradmask.verdict.stats import clopper_pearson, mcnemar_p


def outcomes(trials: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """All pairs of discordant images, and the concordant ones."""
    pairs = [(ours, theirs) for ours, theirs in product(range(trials + 1), repeat=2) if ours + theirs <= trials]
    return np.array([(ours, theirs, trials - ours - theirs) for ours, theirs in pairs])


def largest_error(rejected: np.ndarray[tuple[int, int], np.dtype[np.int64]], trials: int, difference: float) -> float:
    """The largest chance of these outcomes where the difference is true, on a grid that the code does not use."""
    least, most = max(0.0, -difference), (1 - difference) / 2
    shares = np.linspace(least, most, 1501)
    chances = [
        stats.multinomial.pmf(rejected, trials, [share + difference, share, max(0.0, 1 - 2 * share - difference)]).sum()
        for share in shares
    ]
    return float(max(chances))


@pytest.mark.parametrize("trials", [5, 12, 20])
@pytest.mark.parametrize("difference", [0.0, 0.05, 0.25, -0.1])
@pytest.mark.parametrize("level", [0.01, 0.1])
def test_the_level_holds_for_every_nuisance(trials: int, difference: float, level: float) -> None:
    every = outcomes(trials)
    rejected = np.array([row for row in every if below_p(row[0], row[1], trials, difference) <= level])
    if len(rejected):
        assert largest_error(rejected, trials, difference) <= level * 1.001


@pytest.mark.parametrize("trials", [5, 20, 60])
@pytest.mark.parametrize("difference", [-0.5, -0.1, 0.0, 0.02, 0.25, 0.9])
def test_evidence_is_monotonic(trials: int, difference: float) -> None:
    # So a difference of exactly the hypothesis rejects more often than any larger one.
    ours, theirs = np.mgrid[: trials + 1, : trials + 1]
    each = np.where(ours + theirs <= trials, evidence(ours, theirs, trials, difference), np.nan)
    assert np.isfinite(each[ours + theirs <= trials]).all()
    assert np.nanmin(np.diff(each, axis=0)) >= -1e-9
    assert np.nanmax(np.diff(each, axis=1)) <= 1e-9


@pytest.mark.parametrize("difference", [0.02, 0.05, 0.25])
def test_larger_differences_are_rejected_less_often(difference: float) -> None:
    every = outcomes(30)
    rejected = every[rejected_below(every[:, 0], every[:, 1], 30, difference, 0.05)]
    errors = [largest_error(rejected, 30, each) for each in np.linspace(difference, 0.9, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] <= 0.05


def chance(most: paired.Counts, trials: int, ours: float, theirs: float) -> float:
    """Of an outcome in a region, for any two shares of discordant images."""
    number = np.arange(trials + 1)
    rows = stats.binom.cdf(most, trials - number, ours / (1 - theirs))
    return float(stats.binom.pmf(number, trials, theirs) @ rows)


@pytest.mark.parametrize(("trials", "difference", "level"), [(20, 0.25, 0.01), (60, 0.0, 0.008), (200, 0.05, 2e-5)])
def test_the_search_for_the_largest_chance_misses_nothing(trials: int, difference: float, level: float) -> None:
    # Fewer images of ours and more of theirs make a rejection more likely. Between two shares of theirs, the chance is
    # therefore at most that of the smaller share of ours with the larger share of theirs. This proves the level.
    most = paired._most_ours(paired._critical(trials, difference, level), trials, difference)
    pieces = [(low, high) for low, high in pairwise(np.linspace(0, (1 - difference) / 2, 300))]
    while pieces:
        low, high = pieces.pop()
        if chance(most, trials, low + difference, high) > level:
            middle = (low + high) / 2
            assert chance(most, trials, middle + difference, middle) <= level / (1 + paired._GRID_ERROR / 2)
            assert high - low > 1e-6, "no proof"
            pieces += [(low, middle), (middle, high)]


def test_a_level_that_no_outcome_reaches_rejects_nothing() -> None:
    every = outcomes(12)
    assert not rejected_below(every[:, 0], every[:, 1], 12, 0.02, 1e-18).any()
    assert not rejected_below(every[:, 0], every[:, 1], 12, 0.0, 1e-9).any()


def test_p_values_fall_as_the_hypothesis_moves_away() -> None:
    for ours, theirs in [(0, 0), (2, 1), (5, 0), (4, 6)]:
        bound = upper_bound(ours, theirs, 20, 0.99)
        further = np.linspace(bound, 0.99, 80)
        assert max(below_p(ours, theirs, 20, each) for each in further) <= 0.01


def test_a_bound_never_contradicts_the_test_of_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upper_bound(0, 0, 18, 0.99, margin=0.25) == upper_bound(0, 0, 18, 0.99) < 0.25
    monkeypatch.setattr(paired, "below_p", lambda *_: 0.011)
    assert upper_bound(0, 0, 18, 0.99, margin=0.25) == 0.25


def test_a_test_that_ignores_the_nuisance_breaks_the_level() -> None:
    # The negative control: the asymptotic score test at its nominal level.
    every = outcomes(12)
    rejected = every[stats.norm.cdf(score(every[:, 0], every[:, 1], 12, 0.25)) <= 0.01]
    assert largest_error(rejected, 12, 0.25) > 0.01


@pytest.mark.parametrize(("trials", "difference", "level"), [(20, 0.25, 0.01), (37, 0.1, 0.004), (60, 0.05, 0.05)])
def test_arrays_are_judged_as_numbers_are(trials: int, difference: float, level: float) -> None:
    every = outcomes(trials)[::7]
    found = rejected_below(every[:, 0], every[:, 1], trials, difference, level)
    assert found.tolist() == [below_p(ours, theirs, trials, difference) <= level for ours, theirs, _ in every.tolist()]


def test_it_rejects_where_the_conditional_test_does() -> None:
    for ours, theirs in [(7, 0), (9, 1), (20, 5), (40, 20)]:
        assert above_p(ours, theirs, 200, 0.0) < mcnemar_p(ours, theirs)


def test_bounds_against_the_conservative_ones() -> None:
    # Where nothing is broken nothing beats the binomial bound. Where both attacks break images, much does.
    assert upper_bound(0, 0, 200, 0.99) == pytest.approx(clopper_pearson(0, 200, 0.99)[1], abs=5e-4)
    assert upper_bound(10, 10, 200, 0.99) < 0.65 * clopper_pearson(10, 200, 0.99)[1]
    assert lower_bound(10, 10, 200, 0.99) == -upper_bound(10, 10, 200, 0.99)


@pytest.mark.parametrize(("ours", "theirs", "trials"), [(0, 0, 20), (3, 1, 20), (0, 4, 36), (12, 5, 60)])
def test_bounds_are_the_hypotheses_not_rejected(ours: int, theirs: int, trials: int) -> None:
    high, low = upper_bound(ours, theirs, trials, 0.95), lower_bound(ours, theirs, trials, 0.95)
    assert low <= (ours - theirs) / trials <= high
    assert below_p(ours, theirs, trials, high + 0.01) < 0.05 < below_p(ours, theirs, trials, high - 0.01)
    assert above_p(ours, theirs, trials, low - 0.01) < 0.05 < above_p(ours, theirs, trials, low + 0.01)


def test_without_images_nothing_is_known() -> None:
    assert (below_p(0, 0, 0, 0.1), upper_bound(0, 0, 0, 0.99), lower_bound(0, 0, 0, 0.99)) == (1.0, 1.0, -1.0)
    assert not rejected_below(np.zeros(3), np.zeros(3), 0, 0.1, 0.01).any()


@pytest.mark.parametrize(("rate", "other"), [(0.3, 0.0), (0.3, 0.1), (1.0, 0.0), (0.08, 0.02)])
def test_images_to_establish_a_gap_are_about_enough(rate: float, other: float) -> None:
    needed = images_to_establish_gap(rate, other, 0.99)
    assert needed is not None
    assert above_p(round(rate * needed), round(other * needed), needed, 0.0) < 0.02
    few = needed // 2
    assert above_p(round(rate * few), round(other * few), few, 0.0) > 0.01


@pytest.mark.parametrize(("margin", "rate", "other"), [(0.25, 0.1, 0.1), (0.05, 0.0, 0.0), (0.05, 0.02, 0.02)])
def test_images_to_exclude_a_gap_are_about_enough(margin: float, rate: float, other: float) -> None:
    needed = images_to_exclude_gap(margin, rate, other, 0.99)
    assert needed is not None
    assert below_p(round(rate * needed), round(other * needed), needed, margin) < 0.02
    few = needed // 2
    assert below_p(round(rate * few), round(other * few), few, margin) > 0.01


def test_no_number_of_images_shows_what_is_not_there() -> None:
    assert images_to_establish_gap(0.1, 0.1, 0.99) is None
    assert images_to_exclude_gap(0.05, 0.15, 0.1, 0.99) is None


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 20, 24, 40, 200])
@pytest.mark.parametrize("confidence", [0.99, 0.9999, 0.999999, 1 - 1e-9])
def test_bounds_near_one_are_found_in_time(trials: int, confidence: float) -> None:
    """A search that has come to the end of its interval once went on for ever."""
    start = time.monotonic()
    for missing in range(min(trials, 3)):
        for theirs in range(missing + 1):
            ours = trials - missing
            bound = upper_bound(ours, min(theirs, missing), trials, confidence)
            assert (ours - theirs) / trials <= bound <= 1
    assert time.monotonic() - start < 60
