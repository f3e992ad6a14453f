"""The decision rule: from what attacks broke to a verdict. Pure functions, no torch.

The masking gap is what adaptive attacks break together beyond the gradient attacks *and* beyond the placebo: fresh
gradient attacks with the budget of all adaptive attacks together, so that like is compared with like. Bounds and tests
hold for samples of any size. They are exact where an image is either broken or not, and rest on bets on bounded values
where a randomized defense answers an image correctly with some chance. An audit may judge its evidence after each
adaptive attack on each batch of images, so each interim analysis gets its share of the error (Bonferroni; `interim`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradmask.verdict import reasons
from pytest_gradmask.verdict.interim import InterimAnalysis
from pytest_gradmask.verdict.results import AttackResult, Finding, Gap, Kind, Prediction, Verdict, accuracy, chances
from pytest_gradmask.verdict.stats import difference_bounds, mcnemar_p, mean_p, paired_interval


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its reasons, the gap behind it and, if more images would decide, about how many it takes."""

    verdict: Verdict
    reasons: tuple[str, ...]
    gap: Gap | None
    images_needed: int | None = None


def judge(
    *, low: Any, high: Any, estimate: Any, p_value: Any, unconverged: Any, margin: float, confidence: float
) -> Any:
    """The verdict on the masking gap of one audit, or of many at once.

    Everything but ``margin`` and ``confidence`` is a number, or an array with one element for each audit.

    Args:
        low, high: bounds of the gap, as a share of the images.
        estimate: of the gap.
        p_value: of the paired test of the adaptive attacks against the placebo, for all analyses together.
        unconverged: share of the images that the placebo breaks and no gradient attack does.
        margin: of the verdict.
        confidence: of bounds and test.

    Returns:
        A `Verdict`, or an array of them.
    """
    masked = (low > 0) & (p_value < 1 - confidence) & (estimate > margin)
    not_masked = (high < margin) & (unconverged <= margin)
    verdicts: np.ndarray[Any, Any] = np.select(
        [masked, not_masked],
        [np.array(Verdict.MASKED, dtype=object), np.array(Verdict.NOT_MASKED, dtype=object)],
        np.array(Verdict.INCONCLUSIVE, dtype=object),
    )
    return verdicts if verdicts.shape else verdicts.item()


def adjusted_p(p_value: Any, analyses: int) -> Any:
    """A p-value, or an array of them, multiplied by the number of analyses (Bonferroni), and at most 1."""
    return np.minimum(1.0, analyses * p_value)


def measure_gap(
    clean: Sequence[bool],
    predictions: Mapping[int, Prediction],
    attacks: Sequence[AttackResult],
    confidence: float,
    analysis: InterimAnalysis | None = None,
) -> Gap | None:
    """The paired gap between adaptive attacks and placebo; None where either did not run.

    Args:
        clean, predictions, attacks, confidence, analysis: those of `decide`.
    """
    done = [result for result in attacks if result.kind == "gradient" or result.status == "done"]
    if not {"adaptive", "placebo"} <= {result.kind for result in done}:
        return None
    under = _Under(clean, predictions, done)
    # For each image: its chance of a correct answer under the placebo, minus that under the adaptive attacks.
    pairs = zip(under("gradient", "placebo"), under("gradient", "adaptive"), strict=True)
    differences = [under_placebo - under_adaptive for under_placebo, under_adaptive in pairs]
    excess, placebo_only = (math.fsum(max(sign * each, 0.0) for each in differences) for sign in (1, -1))
    total = len(clean)
    analysis = analysis or InterimAnalysis(total)
    # An attack that failed or was skipped early counts: the evidence was judged after it, or would have been.
    analyses = analysis.number * sum(result.kind == "adaptive" and result.status != "skipped" for result in attacks)
    below, above = analysis.lower_level(confidence), analysis.upper_level(confidence)
    if predictions:
        low, high = difference_bounds(differences, below)[0], difference_bounds(differences, above)[1]
        p_value = mean_p(differences, 0.0, -1.0)
    else:
        excess, placebo_only = round(excess), round(placebo_only)
        low = paired_interval(excess, placebo_only, total, below)[0]
        high = paired_interval(excess, placebo_only, total, above)[1]
        p_value = mcnemar_p(excess, placebo_only)
    return Gap(
        excess=excess,
        placebo_only=placebo_only,
        total=total,
        estimate=(excess - placebo_only) / total,
        low=low,
        high=high,
        p_value=float(adjusted_p(p_value, analyses)),
        analyses=analyses,
    )


@dataclass(frozen=True, slots=True)
class _Under:
    """Each image's chance of a correct answer under some kinds of attacks together."""

    clean: Sequence[bool]
    predictions: Mapping[int, Prediction]
    attacks: Sequence[AttackResult]

    def __call__(self, *kinds: Kind) -> list[float]:
        return chances(self.clean, self.predictions, self.of(*kinds))

    def of(self, *kinds: Kind) -> list[AttackResult]:
        return [result for result in self.attacks if result.kind in kinds]


def decide(
    clean: Sequence[bool],
    attacks: Sequence[AttackResult],
    findings: Sequence[Finding],
    *,
    margin: float,
    confidence: float,
    predictions: Mapping[int, Prediction] | None = None,
    analysis: InterimAnalysis | None = None,
) -> Decision:
    """Turn an audit's evidence into a verdict.

    Args:
        clean: for each image, whether it is classified correctly without an attack.
        attacks: every attack that was to run, those that failed or were skipped included.
        findings: of the probes.
        margin: the largest gap, as a share of the images, that still counts as no masking.
        confidence: in (0.5, 1), of every bound and test.
        predictions: of a randomized defense without an attack, for every image; empty for a deterministic defense.
        analysis: which of several interim analyses this is; by default the only one.
    """
    total, predictions = len(clean), predictions or {}
    analysis = analysis or InterimAnalysis(total)
    if not any(clean):
        return Decision(Verdict.INCONCLUSIVE, (reasons.nothing_correct(total),), None)
    failures = [result for result in attacks if result.status == "failed"]
    gap = measure_gap(clean, predictions, attacks, confidence, analysis)
    if gap is None or any(result.kind != "adaptive" for result in failures):
        return Decision(Verdict.INCONCLUSIVE, reasons.no_comparison(failures, gap), gap)

    under = _Under(clean, predictions, attacks)
    unconverged = (math.fsum(under("gradient")) - math.fsum(under("gradient", "placebo"))) / total
    verdict: Verdict = judge(
        low=gap.low,
        high=gap.high,
        estimate=gap.estimate,
        p_value=gap.p_value,
        unconverged=unconverged,
        margin=margin,
        confidence=confidence,
    )
    if verdict is Verdict.MASKED:
        return Decision(verdict, reasons.masked(gap, attacks, margin, randomized=bool(predictions)), gap)
    # Where gradient attacks leave less than the margin, no attack could open a gap of it, whatever the probes found.
    survive = accuracy(clean, predictions, under.of("gradient"), analysis.upper_level(confidence)).high
    undermining = [finding for finding in findings if finding.undermines_attacks] if survive >= margin else []
    obstacles = reasons.obstacles(failures, undermining, unconverged, margin)
    if verdict is Verdict.NOT_MASKED and not obstacles:
        return Decision(verdict, (reasons.not_masked(gap, margin, confidence),), gap)
    if gap.high < margin:
        return Decision(Verdict.INCONCLUSIVE, obstacles, gap)
    needed = reasons.images_needed(gap, margin, confidence)
    return Decision(Verdict.INCONCLUSIVE, (*obstacles, *reasons.undecided(gap, margin, needed)), gap, needed)
