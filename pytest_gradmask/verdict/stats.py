"""Exact tests and intervals, from scipy's distributions. Those of counts take numbers or arrays of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special, stats

#: Bets of `mean_p`: half of the wealth on the whole stake, which is best where values hardly differ, the other half
#: spread as a universal portfolio is (arcsine law).
_STAKES = np.append(np.sin(np.pi * (np.arange(64) + 0.5) / 128) ** 2, 1.0)
_SHARES = np.append(np.full(64, 0.5 / 64), 0.5)


def clopper_pearson(successes: Any, trials: Any, confidence: float) -> tuple[Any, Any]:
    """One-sided exact bounds of a proportion, each valid at ``confidence``.

    Together they are a two-sided interval at ``2 * confidence - 1`` (Clopper and Pearson 1934).

    Args:
        successes: in ``0..trials``; a number, or an array of them.
        trials: 0 gives (0, 1); a number, or an array of them.
        confidence: in (0.5, 1), of each bound.
    """
    alpha, failures = 1 - confidence, trials - np.asarray(successes)
    # Impossible parameters give NaN, which the cases of no success and no failure replace.
    low = np.where(failures == trials, 0.0, stats.beta.ppf(alpha, successes, failures + 1))
    high = np.where(failures == 0, 1.0, stats.beta.ppf(1 - alpha, np.asarray(successes) + 1, failures))
    return _plain(low), _plain(high)


def mcnemar_p(ours: Any, theirs: Any) -> Any:
    """One-sided exact p-value of a paired comparison; of two numbers, or of two arrays of them.

    Under the null hypothesis a discordant image is as likely to be broken by one attack as by the other, so of
    ``ours + theirs`` discordant images, ``ours`` is binomial with probability 1/2 (McNemar 1947, exact form).
    """
    return _plain(np.asarray(stats.binom.sf(np.asarray(ours) - 1, np.asarray(ours) + theirs, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of even one wrong rejection stays below the level.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the smallest counts as often as there are
    tests, the next once less, and none may be below one before it.
    """
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = adjusted[index] = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
    return adjusted


def mean_p(values: Sequence[float], mean: float, low: float) -> float:
    """p-value of independent values, none below ``low``, whose expectation is ``mean`` or less: by betting.

    A bet stakes a share of a fortune on each value exceeding ``mean``. If the hypothesis holds, the fortune does not
    grow on average, so a fortune of 1 grows to w with a chance of at most 1/w (Markov): p = 1/w, for any distribution
    and any number of values (Waudby-Smith and Ramdas 2024, arXiv:2010.09686).

    Args:
        values: at least ``low``.
        mean: at least ``low``.
        low: the smallest possible value.
    """
    if mean <= low:
        return 1.0 if max(values, default=low) <= low else 0.0
    gains = (np.asarray(values, dtype=float) - mean) / (mean - low)
    with np.errstate(divide="ignore"):  # a fortune staked whole may be lost
        fortunes = np.log1p(np.outer(gains, _STAKES)).sum(0)
    return float(np.exp(-max(0.0, special.logsumexp(fortunes, b=_SHARES))))


def difference_bounds(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """One-sided bounds, each valid at ``confidence``, of the expectation of independent values in -1..1.

    Those that `mean_p` does not reject: valid for any distribution and any number of values, and narrow where the
    values hardly differ, as differences between two attacks do. No values give (-1, 1).
    """
    return _lower_bound(values, confidence), -_lower_bound([-value for value in values], confidence)


def accuracy_bounds(chances: Sequence[float], confidence: float) -> tuple[float, float]:
    """One-sided bounds, each valid at ``confidence``, of the expectation of independent values in 0..1.

    Their sum exceeds a number at most e times as often as a binomial one of the same expectation does (Bentkus 2004,
    "On Hoeffding's inequalities"), so these are exact binomial bounds with the error divided by e. No values give
    (0, 1).
    """
    # Sums of exact shares such as 1/3 may miss a whole number by rounding.
    total = round(math.fsum(chances), 9)
    strict = 1 - (1 - confidence) / math.e
    low = clopper_pearson(math.floor(total), len(chances), strict)[0]
    return low, clopper_pearson(math.ceil(total), len(chances), strict)[1]


def _plain(values: np.ndarray[Any, Any]) -> Any:
    """A float in place of an array without axes."""
    return values if values.shape else float(values)


def _lower_bound(values: Sequence[float], confidence: float) -> float:
    """Of the expectation of values in -1..1."""
    if max(values, default=-1.0) <= -1:
        return -1.0
    average = math.fsum(values) / len(values)

    def excess(mean: float) -> float:
        return mean_p(values, mean, -1.0) - (1 - confidence)

    # Rounded down: the bound is on the safe side of the root.
    return max(-1.0, float(optimize.bisect(excess, -1.0, average, xtol=1e-6)) - 1e-6)


def images_to_exclude(limit: float, rate: float, confidence: float) -> int | None:
    """How many images show that a proportion is below ``limit`` if it goes on at ``rate``; None if no number would."""
    if rate >= limit:
        return None
    return smallest_count(lambda n: clopper_pearson(round(rate * n), n, confidence)[1] < limit)


def smallest_count(decided: Callable[[int], Any], limit: int = 1_000_000) -> int | None:
    """The smallest number from which on a condition holds, if it holds from some number on; None above ``limit``."""
    low, high = 0, 16
    while not decided(high):
        low, high = high, high * 2
        if high > limit:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
