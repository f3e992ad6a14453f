"""The decision rule: from what attacks broke to a verdict. Pure functions, no torch.

The masking gap is what adaptive attacks break together beyond the gradient attacks *and* beyond the placebo: fresh
gradient attacks with the budget of all adaptive attacks together, so that like is compared with like. Bounds and tests
hold for samples of any size. They are exact where an image is either broken or not (`paired`), and rest on bets on
bounded values where a randomized defense answers an image correctly with some chance (`stats`). An audit may decide
after each adaptive attack on each batch of images, and may be one of several, so each decision gets its share of the
error (`interim`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_gradmask.verdict import reasons
from pytest_gradmask.verdict.interim import InterimAnalysis
from pytest_gradmask.verdict.paired import above_p, lower_bound, upper_bound
from pytest_gradmask.verdict.results import (
    AttackResult,
    Finding,
    Gap,
    Kind,
    Prediction,
    Proportion,
    Verdict,
    accuracy,
    chances,
    has_gradient,
)
from pytest_gradmask.verdict.stats import difference_bounds, mean_p

#: Findings that refuse ``NOT_MASKED`` also where gradient attacks leave less than the margin: which images count as
#: correct, which defense was attacked, or how far, is then in doubt itself.
IN_DOUBT = ("behaves-differently", "chance-accuracy", "constant-predictions", "permuted-labels", "stateful", "tiny-eps")


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its reasons.

    Attributes:
        gap: behind it; None if nothing could be compared.
        images_needed: about how many images would decide; None if no number would, or if it is decided.
        unconverged: share of the images classified correctly that the placebo breaks and no gradient attack does.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    gap: Gap | None
    images_needed: int | None = None
    unconverged: float = 0.0


def judge(*, excluded: Any, estimate: Any, p_value: Any, unconverged: Any, margin: float, confidence: float) -> Any:
    """The verdict on the masking gap of one audit, or of many at once.

    Everything but ``margin`` and ``confidence`` is one value, or an array with one element for each audit.

    Args:
        excluded: whether a gap of the margin or more is rejected.
        estimate: of the gap, as a share of the images classified correctly.
        p_value: of the paired test of the adaptive attacks against the placebo, adjusted for decisions and attempts.
        unconverged: share of these images that the placebo breaks and no gradient attack does.
        margin: of the verdict.
        confidence: of the test.

    Returns:
        A `Verdict`, or an array of them.
    """
    masked = (p_value < 1 - confidence) & (estimate > margin)
    not_masked = excluded & (unconverged <= margin)
    verdicts: np.ndarray[Any, Any] = np.select(
        [masked, not_masked],
        [np.array(Verdict.MASKED, dtype=object), np.array(Verdict.NOT_MASKED, dtype=object)],
        np.array(Verdict.INCONCLUSIVE, dtype=object),
    )
    return verdicts if verdicts.shape else verdicts.item()


def adjusted_p(p_value: Any, share: float) -> Any:
    """A p-value, or an array of them, for a test with this share of the whole error, and at most 1."""
    return np.minimum(1.0, np.asarray(p_value) / share)


def measure_gap(
    clean: Sequence[bool],
    predictions: Mapping[int, Prediction],
    attacks: Sequence[AttackResult],
    confidence: float,
    analysis: InterimAnalysis | None = None,
    *,
    complete: bool = True,
    margin: float = 0.0,
    unsettled: int | None = 0,
) -> Gap | None:
    """The paired gap between adaptive attacks and placebo; None where either did not run, or no image is correct.

    Args:
        clean, predictions, attacks, confidence, analysis, complete: those of `decide`.
        margin: of the verdict. The upper bound is below it only if the test of a gap of this size rejects it.
        unsettled: see `decide`. The lower bound holds whatever becomes of these images.
    """
    done = [result for result in attacks if result.kind == "gradient" or result.status == "done"]
    if not any(clean) or not {"adaptive", "placebo"} <= {result.kind for result in done}:
        return None
    under = _Under(clean, predictions, done)
    # For each image: its chance of a correct answer under the placebo, minus that under the adaptive attacks.
    pairs = zip(under("gradient", "placebo"), under("gradient", "adaptive"), strict=True)
    differences = [under_placebo - under_adaptive for under_placebo, under_adaptive in pairs]
    excess, placebo_only = (math.fsum(max(sign * each, 0.0) for each in differences) for sign in (1, -1))
    total = len(differences)
    analysis = analysis or InterimAnalysis(total)
    # An attack that failed or was skipped early counts: the audit decides after it, or would have.
    adaptive = sum(result.kind == "adaptive" and result.status != "skipped" for result in attacks)
    share = analysis.lower_share(adaptive, complete=complete)
    below, above = 1 - (1 - confidence) * share, analysis.upper_level(confidence)
    if predictions:
        low, high = difference_bounds(differences, below)[0], difference_bounds(differences, above)[1]
        p_value = mean_p(differences, 0.0, -1.0)
    else:
        excess, placebo_only = round(excess), round(placebo_only)
        low = lower_bound(excess, placebo_only, total, below)
        high = upper_bound(excess, placebo_only, total, above, margin=margin)
        p_value = above_p(excess, placebo_only, total, 0.0)
        if unsettled:
            low = lower_bound(max(0, excess - unsettled), placebo_only, total, below)
    if unsettled is None or (unsettled and predictions):
        low = -1.0
    return Gap(
        excess=excess,
        placebo_only=placebo_only,
        total=total,
        estimate=(excess - placebo_only) / total,
        low=low,
        high=high,
        low_level=below,
        high_level=above,
        p_value=float(adjusted_p(p_value, share)),
        analyses=analysis.decisions(adaptive),
    )


@dataclass(frozen=True, slots=True)
class _Under:
    """Chances of a correct answer under some kinds of attacks together, for each image that is correct without one."""

    clean: Sequence[bool]
    predictions: Mapping[int, Prediction]
    attacks: Sequence[AttackResult]

    def __call__(self, *kinds: Kind) -> list[float]:
        return self.by([result for result in self.attacks if result.kind in kinds])

    def by(self, attacks: Sequence[AttackResult]) -> list[float]:
        each = chances(self.clean, self.predictions, attacks)
        return [chance for chance, correct in zip(each, self.clean, strict=True) if correct]


def decide(
    clean: Sequence[bool],
    attacks: Sequence[AttackResult],
    findings: Sequence[Finding],
    *,
    margin: float,
    confidence: float,
    predictions: Mapping[int, Prediction] | None = None,
    analysis: InterimAnalysis | None = None,
    complete: bool = True,
    interrupted: bool = False,
    unsettled: int | None = 0,
) -> Decision:
    """Turn an audit's evidence into a verdict.

    The gap, and every share that is compared with the margin, are shares of the images that are classified correctly
    without an attack.

    Args:
        clean: for each image, whether it is classified correctly without an attack.
        attacks: every attack that was to run, those that failed or were skipped included.
        findings: of the probes.
        margin: the largest gap that still counts as no masking.
        confidence: in (0.5, 1), of every bound and test.
        predictions: of a randomized defense without an attack, for every image; empty for a deterministic defense.
        analysis: which of several interim analyses this is, of which attempt; by default the only one of the first.
        complete: whether all adaptive attacks have run on the images of this analysis.
        interrupted: whether there was no time to go on until the verdict is decided.
        unsettled: how many images one side alone has broken and not all gradient attacks have been tried on, for want
            of time; None if the placebo was interrupted, so that this is not known.
    """
    total, predictions = sum(clean), predictions or {}
    analysis = analysis or InterimAnalysis(total)
    if not total:
        return Decision(Verdict.INCONCLUSIVE, (reasons.nothing_correct(len(clean)),), None)
    under = _Under(clean, predictions, attacks)
    # Where the audit's own gradient attacks and the placebo leave less than the margin, no attack could open a gap of
    # it. Neither a finding nor an attack that failed can then change the verdict. An attack of the user's waives
    # nothing.
    own = [result for result in attacks if result.kind != "adaptive" and result.status == "done" and not result.by_user]
    left = _proportion(under.by(own), analysis.upper_level(confidence), randomized=bool(predictions)).high
    matters = left >= margin
    failures = [result for result in attacks if result.status == "failed"] if matters else []
    gap = measure_gap(
        clean, predictions, attacks, confidence, analysis, complete=complete, margin=margin, unsettled=unsettled
    )
    if not has_gradient(attacks):
        share = accuracy(clean, predictions, attacks, confidence)
        why = [*reasons.no_gradient(share, attacks), *([reasons.out_of_time(gap, confidence)] if interrupted else [])]
        return Decision(Verdict.INCONCLUSIVE, tuple(why), gap)
    if interrupted:
        return Decision(Verdict.INCONCLUSIVE, (reasons.out_of_time(gap, confidence),), gap)
    if gap is None or any(result.kind != "adaptive" for result in failures):
        failed = failures or [result for result in attacks if result.status == "failed"]
        return Decision(Verdict.INCONCLUSIVE, reasons.no_comparison(failed, gap), gap)

    unconverged = (math.fsum(under("gradient")) - math.fsum(under("gradient", "placebo"))) / total
    verdict: Verdict = judge(
        excluded=gap.high < margin,
        estimate=gap.estimate,
        p_value=gap.p_value,
        unconverged=unconverged,
        margin=margin,
        confidence=confidence,
    )
    if verdict is Verdict.MASKED:
        return Decision(
            verdict, reasons.masked(gap, attacks, margin, randomized=bool(predictions)), gap, unconverged=unconverged
        )
    undermining = [
        finding for finding in findings if finding.undermines_attacks and (matters or finding.id in IN_DOUBT)
    ]
    obstacles = reasons.obstacles(failures, undermining, unconverged, margin)
    if verdict is Verdict.NOT_MASKED and not obstacles:
        return Decision(verdict, (reasons.not_masked(gap, margin, confidence),), gap, None, unconverged)
    if gap.high < margin:
        return Decision(Verdict.INCONCLUSIVE, obstacles, gap, None, unconverged)
    attempt = analysis.attempt + 1
    needed = reasons.images_needed(gap, margin, confidence, images=len(clean), attempt=attempt)
    undecided = reasons.undecided(gap, margin, needed, attempt=attempt)
    return Decision(Verdict.INCONCLUSIVE, (*obstacles, *undecided), gap, needed, unconverged)


def _proportion(each: Sequence[float], confidence: float, *, randomized: bool) -> Proportion:
    if randomized:
        return Proportion.of_chances(each, confidence)
    return Proportion.of(round(sum(each)), len(each), confidence)
