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
from pytest_gradmask.auditing.research import decide


def false_alarm_bound(images: int, discordant: Sequence[float]) -> float:
    """An upper bound of the chance of ``MASKED`` without masking, however the looks depend on each other.

    The chances that the paired test rejects at each look, added up (Bonferroni's inequality; a verdict needs one).

    Args:
        images: of the audit.
        discordant: for each look, the chance that an image falls to exactly one of the adaptive attacks so far and the
            placebo. Which of the two is a coin toss where nothing is masked and the placebo has their budget.
    """
    each = [binom.pmf(np.arange(images + 1), images, chance) for chance in discordant]
    return float(sum(chances @ _significance(images, len(discordant)) for chances in each))


@lru_cache(maxsize=16)
def _significance(images: int, analyses: int) -> NDArray[np.float64]:
    """For each number of discordant images, the chance that so many are ours that the paired test rejects."""
    number = np.arange(images + 1)
    tails = binom.sf(number[None, :] - 1, number[:, None], 0.5)  # discordant images by those of them that are ours
    significant: NDArray[np.float64] = np.where(tails * analyses < 1 - CONFIDENCE, tails, 0.0).max(1)
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
