"""Exact unconditional tests and bounds for the difference of two paired proportions.

Of ``trials`` images, only our attack breaks ``ours`` and only the other attack ``theirs``. Outcomes are ordered by how
much they speak against a hypothesis (`evidence`). The p-value is the chance of an outcome at least as extreme, the
largest over the unknown share of images that only the other attack breaks. That is exact at every sample size
(Suissa and Shuster 1991 for a difference of zero; Lloyd and Moldovan 2008). It is less conservative than to condition
on the number of discordant images, as McNemar's exact test does. Pure functions, no torch.

Why the level holds: the outcomes that reject a hypothesis are monotonic. Fewer images of ours, or more of theirs, never
turn a rejection into none. So of all differences of ``difference`` or more, ``difference`` itself rejects most often
(Barnard's convexity; Sidik 2003 for the score statistic). `_most_ours` makes every region monotonic, whatever
the statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pytest_gradmask.verdict.stats import smallest_count

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
#: From a parameter and values of the nuisance parameter to a largest chance and where it is.
_Chances = Callable[[float, Floats | None], tuple[float, float]]

#: Points of the nuisance parameter per square root of a trial: about a quarter of a standard deviation apart.
_DENSITY, _FEWEST = 9, 32
#: Local maxima above this share of the largest one are looked at closely. Between two points of the grid the chance
#: differs by less.
_CLOSE = 0.95
#: Chances are taken as larger by this share, for what the search may miss. Bounds of the chance between any two values
#: of the nuisance parameter prove that it misses less (0.0006) for 5 to 1,000 images, differences from -0.1 to 0.25 and
#: levels of 0.01, 0.008 and 0.00002 (tests/verdict/test_paired.py has some of them). Measured, it misses 0.00009.
_GRID_ERROR = 0.001
#: By how much the binomial statistic comes first in `evidence`. Without, an audit in which nothing breaks needs 1 to 3
#: images more (margins of 5 to 25 points); with 0.1 or more, `NOT_MASKED` with a placebo effect of 2 % is rarer (1,000
#: images, margin of 2 points: 74 % up to 0.05, 72 % at 0.1, 68 % at 0.2).
_AHEAD = 0.05
#: Chances below this count whole, so a p-value is too large by at most this for each number of images.
_NEGLIGIBLE = 1e-12
#: Precision of `upper_bound`, and of the critical values of `rejected_below`.
_PRECISION = 1e-5
#: Where `upper_bound` asks whether larger differences are rejected, too: shares of the way to 1.
_FURTHER = np.linspace(0, 1, 34)[1:-1] ** 3
_FINE = 1e-7
_ROUNDING = 1e-9


def score(ours: Any, theirs: Any, trials: int, difference: float) -> Floats:
    """Tango's score statistic of the difference of two paired proportions; small where it is below ``difference``.

    Args:
        ours, theirs: discordant images; numbers, or arrays of them.
        trials: images, at least 1.
        difference: the hypothesis, in (-1, 1).
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    linear = -ours - theirs + (2 * trials - ours + theirs) * difference
    constant = -theirs * difference * (1 - difference)
    # Maximum likelihood estimate of the share of ``theirs`` under the hypothesis.
    share = (np.sqrt(np.maximum(linear**2 - 8 * trials * constant, 0.0)) - linear) / (4 * trials)
    variance = trials * (2 * share + difference * (1 - difference))
    excess = ours - theirs - trials * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = excess / np.sqrt(np.maximum(variance, 0.0))
    # Without any discordant image there is neither excess nor variance.
    return np.where(np.abs(excess) <= _ROUNDING, 0.0, statistic)


def evidence(ours: Any, theirs: Any, trials: int, difference: float) -> Floats:
    """How well an outcome agrees with a difference of ``difference`` or more, as a normal score: small is badly.

    The smaller of two statistics. Tango's is the sharper one where both attacks break images of their own. The binomial
    test of ``ours`` alone is sharper where ``theirs`` is zero.
    """
    return np.minimum(score(ours, theirs, trials, difference), _alone(ours, trials, difference))


def _alone(ours: Any, trials: int, difference: float) -> Floats:
    """The binomial p-value of ``ours``, as a normal score."""
    ours = np.asarray(ours, dtype=float)
    if difference <= 0:
        return np.full(ours.shape, np.inf)
    below, above = special.bdtr(ours, trials, difference), special.bdtrc(ours, trials, difference)
    # Of two complementary chances, the smaller one is exact.
    smaller: Floats = np.where(below < above, special.ndtri(below), -special.ndtri(above))
    return smaller - _AHEAD


def below_p(ours: int, theirs: int, trials: int, difference: float) -> float:
    """p-value of the hypothesis that the difference of the proportions is ``difference`` or more.

    Args:
        ours, theirs: discordant images.
        trials: images; none give 1.
        difference: in (-1, 1).
    """
    if trials == 0:
        return 1.0
    return _p_value(float(evidence(ours, theirs, trials, difference)), trials, float(difference))


def above_p(ours: int, theirs: int, trials: int, difference: float) -> float:
    """p-value of the hypothesis that the difference of the proportions is ``difference`` or less."""
    return below_p(theirs, ours, trials, -difference)


def upper_bound(ours: int, theirs: int, trials: int, confidence: float, *, margin: float = 0.0) -> float:
    """Upper bound, valid at ``confidence``, of the difference of the proportions: the largest one that is not rejected.

    Args:
        ours, theirs: discordant images.
        trials: images; none give 1.
        confidence: in (0.5, 1).
        margin: a difference that decides. The bound is below it only if the test of this difference rejects it.
    """
    if trials == 0:
        return 1.0
    bound = _upper_bound(int(ours), int(theirs), int(trials), float(confidence))
    if bound < margin and below_p(ours, theirs, trials, margin) > 1 - confidence:
        return margin
    return bound


def lower_bound(ours: int, theirs: int, trials: int, confidence: float) -> float:
    """Lower bound, valid at ``confidence``, of the difference of the proportions."""
    return -upper_bound(theirs, ours, trials, confidence)


def rejected_below(ours: Any, theirs: Any, trials: int, difference: float, level: float) -> Any:
    """Whether a difference of ``difference`` or more is rejected: `below_p` at most ``level``, for arrays at once."""
    if trials == 0:
        return np.zeros(np.shape(ours), dtype=bool)
    critical = _critical(trials, float(difference), float(level))
    return evidence(ours, theirs, trials, difference) <= critical + _ROUNDING


def images_to_exclude_gap(margin: float, rate: float, other: float, confidence: float) -> int | None:
    """About how many images show that a difference is below ``margin``; None if no number would.

    Args:
        margin: of the verdict.
        rate, other: shares of the images that only our attack breaks, and that only the other breaks.
        confidence: of the verdict.
    """
    if rate - other >= margin:
        return None
    enough = special.ndtri(1 - confidence) - _AHEAD
    return smallest_count(lambda n: evidence(round(rate * n), round(other * n), n, margin) < enough)


def images_to_establish_gap(rate: float, other: float, confidence: float) -> int | None:
    """About how many images show that ``rate`` exceeds ``other``; None if no number would. Arguments as above."""
    if rate <= other:
        return None
    enough = special.ndtri(1 - confidence)
    return smallest_count(lambda n: evidence(round(other * n), round(rate * n), n, 0.0) < enough)


@lru_cache(maxsize=4096)
def _p_value(limit: float, trials: int, difference: float) -> float:
    return _largest_chance(_most_ours(limit, trials, difference), trials, difference, None)[0]


@lru_cache(maxsize=4096)
def _upper_bound(ours: int, theirs: int, trials: int, confidence: float) -> float:
    def chances(difference: float, angles: Floats | None) -> tuple[float, float]:
        limit = float(evidence(ours, theirs, trials, difference))
        return _largest_chance(_most_ours(limit, trials, difference), trials, difference, angles)

    if ours == trials:
        return 1.0
    bound, rejected = (ours - theirs) / trials, False
    guess = bound + 2.5 * math.sqrt((ours + theirs + 2) / trials**2)
    while not rejected:
        bound, worst = _last(chances, 1 - _PRECISION, bound, 1 - confidence, _PRECISION, guess=min(0.99, guess))
        # The order of outcomes changes with the hypothesis, so the p-value may rise again a little.
        above = bound + (1 - bound) * _FURTHER
        kept = [each for each in above if chances(each, worst)[0] > 1 - confidence]
        bound, rejected = max(kept, default=bound), not kept
        if bound >= 1 - 2 * _PRECISION:  # there is nothing left to search above it
            return 1.0
    return bound


@lru_cache(maxsize=256)
def _critical(trials: int, difference: float, level: float) -> float:
    """The largest `evidence` at which a difference of ``difference`` or more is rejected at ``level``."""

    def chances(limit: float, angles: Floats | None) -> tuple[float, float]:
        return _largest_chance(_most_ours(limit, trials, difference), trials, difference, angles)

    # No outcome is as extreme as the first limit, so nothing is rejected there. Every outcome is at the second one.
    first, second = score([0, trials], [trials, 0], trials, difference)
    return _last(chances, float(first) - 1, float(second) + 1, level, _FINE, guess=float(special.ndtri(level)))[0]


def _last(
    chances: _Chances, good: float, bad: float, level: float, precision: float, *, guess: float
) -> tuple[float, Floats]:
    """The parameter nearest to ``bad`` at which the largest chance is at most ``level``, and the worst nuisances.

    At every value of the nuisance parameter, the chance rises from ``good`` to ``bad``. The bisection therefore asks
    only for a few values. Where the result does not hold at all values, the worst of them joins the few.

    Args:
        chances: of a parameter and values of the nuisance parameter: see `_largest_chance`.
        good: a parameter where the chance is at most ``level``.
        bad: one where it is not, or the end of what is searched.
        level: of the test.
        precision: of the result, which is on the side of ``good``.
        guess: of the result.
    """
    angles: Floats = np.array([chances(guess, None)[1]])
    while True:
        low, high = good, bad
        while abs(high - low) > precision:
            middle = (low + high) / 2
            low, high = (middle, high) if chances(middle, angles)[0] <= level else (low, middle)
        largest, worst = chances(low, None)
        if largest <= level or low == good:
            return low, angles
        angles, bad = np.append(angles, worst), low


def _largest_chance(most: Counts, trials: int, difference: float, angles: Floats | None) -> tuple[float, float]:
    """The largest chance of an outcome in a region, and the value of the nuisance parameter where it is.

    Args:
        most, trials, difference: those of `_chances`.
        angles: values of the nuisance parameter; None for all.
    """
    if angles is not None:
        found = _chances(most, trials, difference, angles)
    else:
        angles = np.linspace(0, np.pi / 2, max(_FEWEST, math.ceil(_DENSITY * math.sqrt(trials))))
        found = _chances(most, trials, difference, angles)
        # A parabola through each local maximum and its neighbours has its vertex close to the true maximum.
        left, middle, right = found[:-2], found[1:-1], found[2:]
        (peaks,) = np.nonzero((middle >= left) & (middle >= right) & (middle > _CLOSE * found.max()))
        bend = 2 * middle[peaks] - left[peaks] - right[peaks]
        shift = np.where(bend > 0, (right[peaks] - left[peaks]) / np.maximum(2 * bend, 1e-300), 0.0)
        vertices = angles[1 + peaks] + shift * angles[1]
        angles, found = np.append(angles, vertices), np.append(found, _chances(most, trials, difference, vertices))
    worst = int(found.argmax())
    return min(1.0, float(found[worst]) * (1 + _GRID_ERROR)), float(angles[worst])


@lru_cache(maxsize=64)
def _log_binomials(trials: int) -> Floats:
    counts = np.arange(trials + 1)
    logs: Floats = special.gammaln(trials + 1) - special.gammaln(counts + 1) - special.gammaln(trials - counts + 1)
    return logs


def _chances(most: Counts, trials: int, difference: float, angles: Floats) -> Floats:
    """The chance of at most ``most[theirs]`` images of ours, for each value of the nuisance parameter.

    Args:
        most: for each number of ``theirs``, from 0 to ``trials``; -1 for none.
        angles: in [0, pi / 2], of the share of images that only the other attack breaks, in the arcsine scale in which
            a proportion has the same error everywhere.
    """
    theirs = np.arange(trials + 1)
    # Our share is larger by the difference, and both fit into 1.
    least, largest = max(0.0, -difference), (1 - difference) / 2
    share = (least + (largest - least) * np.sin(angles) ** 2)[:, None]
    rest = np.clip((share + difference) / np.maximum(1 - share, 1e-300), 0.0, 1.0)
    logs = _log_binomials(trials) + special.xlogy(theirs, share) + special.xlog1py(trials - theirs, -share)
    found: Floats = np.where(most >= 0, np.exp(logs), 0.0)
    row, column = np.nonzero((found > _NEGLIGIBLE) & (most < trials - theirs))
    ours = most[column]
    found[row, column] *= special.bdtr(ours, trials - column, rest[row, 0])
    total: Floats = found.sum(1)
    return total


def _most_ours(limit: float, trials: int, difference: float) -> Counts:
    """For each number of ``theirs`` from 0 to ``trials``, the most ``ours`` with `evidence` of at most ``limit``.

    -1 where there is none. The evidence rises with ``ours``, so a bisection finds it. More of theirs never exclude an
    outcome.
    """
    theirs = np.arange(trials + 1)
    low, high = np.full(trials + 1, -1), trials - theirs + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        fits = score(np.maximum(middle, 0), theirs, trials, difference) <= limit + _ROUNDING
        move = high - low > 1
        low, high = np.where(move & fits, middle, low), np.where(move & ~fits, middle, high)
    alone = int(np.searchsorted(_all_alone(trials, difference), limit + _ROUNDING, side="right")) - 1
    return np.maximum.accumulate(np.maximum(low, alone))


@lru_cache(maxsize=64)
def _all_alone(trials: int, difference: float) -> Floats:
    return _alone(np.arange(trials + 1), trials, difference)
