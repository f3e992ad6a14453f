"""The verdict's error rates by exact calculation, where one adaptive attack alone decides: to check the simulation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from audits.calibration.simulation import ADAPTIVE, CONFIDENCE
from pytest_gradmask import AttackResult, Verdict
from pytest_gradmask.auditing.research import decide, plan_analyses, rejected_below


def false_alarm_bound(images: int, discordant: Sequence[float], shares: Sequence[float]) -> float:
    """An upper bound of the chance of ``MASKED`` without masking, however the decisions depend on each other.

    The chances that the paired test rejects at each decision, added up (Bonferroni's inequality; a verdict needs one).

    Args:
        images: of the audit.
        discordant: for each decision, the chance that exactly one of the adaptive attacks so far and the placebo breaks
            an image. Which of the two is a coin toss where nothing is masked and the placebo has their budget.
        shares: for each decision, its share of the error.
    """
    each = [binom.pmf(np.arange(images + 1), images, chance) for chance in discordant]
    return float(sum(chances @ _significance(images, share) for chances, share in zip(each, shares, strict=True)))


def decision_shares(images: int, margin: float, attacks: int) -> list[float]:
    """The share of the error of each decision at the last analysis of an audit, one after each adaptive attack."""
    analysis = plan_analyses(images, margin, CONFIDENCE)[-1]
    return [analysis.lower_share(attacks, complete=number == attacks - 1) for number in range(attacks)]


@lru_cache(maxsize=64)
def _significance(images: int, share: float) -> NDArray[np.float64]:
    """For each number of discordant images, the chance that so many are ours that the paired test rejects."""
    ours, discordant = np.meshgrid(np.arange(images + 1), np.arange(images + 1))
    theirs = np.maximum(discordant - ours, 0)
    rejects = rejected_below(theirs, ours, images, 0.0, (1 - CONFIDENCE) * share) & (ours <= discordant)
    tails = binom.sf(ours - 1, discordant, 0.5)
    significant: NDArray[np.float64] = np.where(rejects, tails, 0.0).max(1)
    return significant


@lru_cache(maxsize=1024)
def thresholds(images: int, margin: float) -> tuple[int, int]:
    """Where the verdict changes if one adaptive attack alone breaks images and the placebo none.

    Returns:
        The first number of broken images that is not ``NOT_MASKED``, and the first that is ``MASKED``.
    """

    def verdict(broken: int) -> Verdict:
        others = [AttackResult(name, "adaptive") for name in ADAPTIVE[:-1]]
        ours = AttackResult(ADAPTIVE[-1], "adaptive", broken=tuple(range(broken)))
        attacks = [*others, ours, AttackResult("placebo", "placebo")]
        return decide([True] * images, attacks, (), margin=margin, confidence=CONFIDENCE).verdict

    every = range(images + 1)
    quiet = bisect_left(every, True, key=lambda broken: verdict(broken) is not Verdict.NOT_MASKED)
    return quiet, bisect_left(every, True, key=lambda broken: verdict(broken) is Verdict.MASKED)


def chances(images: int, margin: float, gap: float) -> tuple[float, float]:
    """Chances of ``MASKED`` and of ``NOT_MASKED`` for a gap that one adaptive attack finds and no placebo touches."""
    quiet, loud = thresholds(images, margin)
    return float(binom.sf(loud - 1, images, gap)), float(binom.cdf(quiet - 1, images, gap))
