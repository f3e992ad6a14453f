"""Exact unconditional tests and bounds for the difference of two paired proportions.

Of ``trials`` images, only our attack breaks ``ours`` and only the other attack ``theirs``. Outcomes are ordered by how
much they speak against the hypothesis (`evidence`). The p-value is the chance of an outcome at least as extreme, the
largest over the unknown share of images that only the other attack breaks. That is exact at every sample size
(Suissa and Shuster 1991 for a difference of zero; Lloyd and Moldovan 2008). It is less conservative than to condition
on the number of discordant images, as McNemar's exact test does. Pure functions, no torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pytest_gradmask.verdict.stats import smallest_count

#: Points of the nuisance parameter in `_largest_chance`, evenly spaced in the arcsine scale of a proportion.
_GRID = 256
#: Chances below this count whole, so a p-value is too large by at most this for each number of images.
_NEGLIGIBLE = 1e-12
#: Precision of `upper_bound`.
_PRECISION = 1e-4
_ROUNDING = 1e-9


def score(ours: Any, theirs: Any, trials: int, difference: float) -> NDArray[np.float64]:
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


def evidence(ours: Any, theirs: Any, trials: int, difference: float) -> NDArray[np.float64]:
    """How little an outcome agrees with a difference of ``difference`` or more: small values speak against it.

    The smaller of two approximate p-values. That of the score statistic is the sharper one where both attacks break
    images of their own. That of the binomial test of ``ours`` alone is sharper where ``theirs`` is zero.
    """
    by_score: NDArray[np.float64] = np.asarray(stats.norm.cdf(score(ours, theirs, trials, difference)))
    if difference <= 0:
        return by_score
    alone: NDArray[np.float64] = np.asarray(stats.binom.cdf(ours, trials, difference))
    return np.minimum(by_score, alone)


def below_p(ours: int, theirs: int, trials: int, difference: float) -> float:
    """p-value of the hypothesis that the difference of the proportions is ``difference`` or more.

    Args:
        ours, theirs: discordant images.
        trials: images; none give 1.
        difference: in (-1, 1).
    """
    if trials == 0:
        return 1.0
    return _largest_chance(float(evidence(ours, theirs, trials, difference)), trials, difference)


def above_p(ours: int, theirs: int, trials: int, difference: float) -> float:
    """p-value of the hypothesis that the difference of the proportions is ``difference`` or less."""
    return below_p(theirs, ours, trials, -difference)


def upper_bound(ours: int, theirs: int, trials: int, confidence: float) -> float:
    """Upper bound, valid at ``confidence``, of the difference of the proportions: the hypotheses not rejected below it.

    Args:
        ours, theirs: discordant images.
        trials: images; none give 1.
        confidence: in (0.5, 1).
    """
    if trials == 0:
        return 1.0
    return _upper_bound(int(ours), int(theirs), int(trials), float(confidence))


def lower_bound(ours: int, theirs: int, trials: int, confidence: float) -> float:
    """Lower bound, valid at ``confidence``, of the difference of the proportions."""
    return -upper_bound(theirs, ours, trials, confidence)


def rejected_below(ours: Any, theirs: Any, trials: int, difference: float, level: float) -> Any:
    """Whether a difference of ``difference`` or more is rejected: `below_p` at most ``level``, for arrays at once."""
    if trials == 0:
        return np.zeros(np.shape(ours), dtype=bool)
    critical = _critical(trials, float(difference), float(level))
    return evidence(ours, theirs, trials, difference) <= critical * (1 + _ROUNDING)


def images_to_exclude_gap(margin: float, rate: float, other: float, confidence: float) -> int | None:
    """About how many images show that a difference is below ``margin``; None if no number would.

    Args:
        margin: of the verdict.
        rate, other: shares of the images that only our attack breaks, and that only the other breaks.
        confidence: of the verdict.
    """
    if rate - other >= margin:
        return None
    return smallest_count(lambda n: evidence(round(rate * n), round(other * n), n, margin) < 1 - confidence)


def images_to_establish_gap(rate: float, other: float, confidence: float) -> int | None:
    """About how many images show that ``rate`` exceeds ``other``; None if no number would. Arguments as above."""
    if rate <= other:
        return None
    return smallest_count(lambda n: evidence(round(other * n), round(rate * n), n, 0.0) < 1 - confidence)


@lru_cache(maxsize=4096)
def _upper_bound(ours: int, theirs: int, trials: int, confidence: float) -> float:
    low, high = (ours - theirs) / trials, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if below_p(ours, theirs, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=256)
def _critical(trials: int, difference: float, level: float) -> float:
    """The largest `evidence` at which a difference of ``difference`` or more is rejected at ``level``."""
    low, high = np.log(level) - 3.0, np.log(level) + 2.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _largest_chance(float(np.exp(middle)), trials, difference) <= level:
            low = middle
        else:
            high = middle
    return float(np.exp(low))


@lru_cache(maxsize=4096)
def _largest_chance(limit: float, trials: int, difference: float) -> float:
    """The largest chance of `evidence` of at most ``limit`` if the difference is ``difference``."""
    theirs = np.arange(trials + 1)
    most = _most_ours(limit, trials, difference)
    # The share of images that only the other attack breaks; ours is larger by the difference, and both fit into 1.
    least, largest = max(0.0, -difference), (1 - difference) / 2
    share = (least + (largest - least) * np.sin(np.linspace(0, np.pi / 2, _GRID)) ** 2)[:, None]
    rest = np.clip((share + difference) / np.maximum(1 - share, 1e-300), 0.0, 1.0)
    chances = stats.binom.pmf(theirs, trials, share)
    row, column = np.nonzero(chances > _NEGLIGIBLE)  # most outcomes hardly ever happen
    chances[row, column] *= stats.binom.cdf(most[column], (trials - theirs)[column], rest[row, 0])
    return float(min(1.0, chances.sum(1).max()))


def _most_ours(limit: float, trials: int, difference: float) -> NDArray[np.int64]:
    """For each number of ``theirs`` from 0 to ``trials``, the most ``ours`` with `evidence` of at most ``limit``.

    -1 where there is none. The evidence rises with ``ours``, so a bisection finds it.
    """
    theirs = np.arange(trials + 1)
    low, high = np.full(trials + 1, -1), trials - theirs + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        fits = evidence(np.maximum(middle, 0), theirs, trials, difference) <= limit * (1 + _ROUNDING)
        move = high - low > 1
        low, high = np.where(move & fits, middle, low), np.where(move & ~fits, middle, high)
    return low
