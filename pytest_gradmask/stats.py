"""Exact tests and intervals, from scipy's distributions."""

from __future__ import annotations

from collections.abc import Callable

from scipy import stats


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """One-sided exact bounds of a proportion, each valid at ``confidence``.

    Together they are a two-sided interval at ``2 * confidence - 1`` (Clopper and Pearson 1934).

    Args:
        successes: in ``0..trials``.
        trials: 0 gives (0, 1).
        confidence: in (0.5, 1), of each bound.
    """
    alpha = 1 - confidence
    low = 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - alpha, successes + 1, trials - successes))
    return low, high


def mcnemar_p(ours: int, theirs: int) -> float:
    """One-sided exact p-value of a paired comparison.

    Under the null a discordant image is as likely to fall to one attack as to the other, so of
    ``ours + theirs`` discordant images, ``ours`` is binomial with probability 1/2 (McNemar 1947, exact form).
    """
    return float(stats.binom.sf(ours - 1, ours + theirs, 0.5)) if ours else 1.0


def paired_interval(ours: int, theirs: int, trials: int, confidence: float) -> tuple[float, float]:
    """One-sided exact bounds, each valid at ``confidence``, of the difference of two paired proportions.

    ``ours`` images fell only to our attack and ``theirs`` only to the other, of ``trials``.

    The upper bound ignores what speaks for the other attack (difference <= our proportion). The lower
    bound splits the error between the share of discordant images and our share of those (Bonferroni),
    so where it is above 0 the exact paired test rejects, too.
    """
    upper = clopper_pearson(ours, trials, confidence)[1]
    discordant = ours + theirs
    half = 1 - (1 - confidence) / 2
    share_low = clopper_pearson(ours, discordant, half)[0] if discordant else 0.0
    rate_low, rate_high = clopper_pearson(discordant, trials, half)
    sign = 2 * share_low - 1
    lower = sign * (rate_low if sign > 0 else rate_high)
    return lower, upper


def images_to_exclude(margin: float, rate: float, confidence: float) -> int | None:
    """How many images settle that a proportion is below ``margin`` if it goes on at ``rate``; None if none would."""
    return _search(lambda n: clopper_pearson(round(rate * n), n, confidence)[1] < margin) if rate < margin else None


def images_to_establish(rate: float, other: float, confidence: float, looks: int) -> int | None:
    """How many images settle that ``rate`` exceeds ``other`` at one of ``looks`` looks; None if none would."""
    if rate <= other:
        return None
    alpha = (1 - confidence) / max(looks, 2)
    return _search(lambda n: mcnemar_p(round(rate * n), round(other * n)) < alpha)


def _search(settled: Callable[[int], bool], limit: int = 1_000_000) -> int | None:
    low, high = 0, 16
    while not settled(high):
        low, high = high, high * 2
        if high > limit:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high
