"""Error rates and power by exact calculation, to check the simulation and to compare decision rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, multinomial

from audits.calibration.populations import Counts
from audits.calibration.simulation import CONFIDENCE
from pytest_gradmask.auditing.research import InterimAnalysis, clopper_pearson, plan_analyses, rejected_below

#: Of both tests in the single analysis of a first attempt.
_LEVEL = 1 - InterimAnalysis(1).upper_level(CONFIDENCE)


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
    """Where the verdict changes if one adaptive attack alone breaks images and the placebo none, in a single analysis.

    Returns:
        The first number of broken images that is not ``NOT_MASKED``, and the first that is ``MASKED``.
    """
    broken, none = np.arange(images + 2), np.zeros(images + 2)
    quiet = rejected_below(broken, none, images, margin, _LEVEL)
    loud = rejected_below(none, broken, images, 0.0, _LEVEL) & (broken > margin * images)
    loud[-1] = True  # where no number is enough
    return int(quiet.argmin()), int(loud.argmax())


def chances(images: int, margin: float, gap: float) -> tuple[float, float]:
    """Chances of ``MASKED`` and of ``NOT_MASKED`` for a gap that one adaptive attack finds and no placebo touches."""
    quiet, loud = thresholds(images, margin)
    return float(binom.sf(loud - 1, images, gap)), float(binom.cdf(quiet - 1, images, gap))


#: Whether so many images of so many, broken by adaptive attacks alone, are significant.
Significant = Callable[[Counts, int], NDArray[np.bool_]]


def by_new_rule(decisions: int) -> Significant:
    """The last of so many decisions: an exact unconditional test with most of the error."""
    share = InterimAnalysis(1, decisions).lower_share(1, complete=True)
    return lambda broken, images: rejected_below(0 * broken, broken, images, 0.0, (1 - CONFIDENCE) * share)


def by_old_rule(decisions: int) -> Significant:
    """The rule up to version 0.1: McNemar's exact test, and an equal share of the error for each decision."""
    return lambda broken, images: binom.sf(broken - 1, broken, 0.5) * decisions < 1 - CONFIDENCE


def images_for_power(gap: float, margin: float, significant: Significant, power: float = 0.9) -> int:
    """How many images an audit with this gap needs to say ``MASKED`` with this chance; one attack finds the gap."""
    for images in count(2):
        broken = np.arange(images + 1)
        masked = significant(broken, images) & (broken > margin * images)
        if binom.pmf(broken, images, gap)[masked].sum() >= power:
            return images
    raise AssertionError


def not_masked_chances(images: int, margin: float, effect: float) -> tuple[float, float]:
    """The chance that a single analysis excludes a gap of the margin, by the old rule and by the new one.

    Adaptive attacks alone break a share ``effect`` of the images, and the placebo alone breaks another one. The old
    rule ignored the images that the placebo alone breaks.
    """
    most = int(binom.isf(1e-9, images, effect)) + 1
    ours, theirs = np.mgrid[: most + 1, : most + 1]
    chance = multinomial.pmf(
        np.stack([ours, theirs, images - ours - theirs], -1), images, [effect, effect, 1 - 2 * effect]
    )
    old = clopper_pearson(ours, images, CONFIDENCE)[1] < margin
    new = rejected_below(ours, theirs, images, margin, _LEVEL)
    return float(chance[old].sum()), float(chance[new].sum())
