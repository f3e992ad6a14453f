"""From broken images and findings to a verdict: pure functions, no torch.

The masking gap is what adaptive attacks break together, beyond the gradient attacks *and* beyond a placebo: fresh
gradient attacks with the budget of all adaptive attacks together, so that like is compared with like. Every bound and
every test holds for samples of any size: exact ones where an image falls or does not, bets on bounded values where a
randomized defense answers it right with some chance. An audit may look after each adaptive attack of each batch of
images, so each look gets its share of the error (Bonferroni; `analyses`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_gradmask.verdict.interim import InterimAnalysis
from pytest_gradmask.verdict.results import AttackResult, Finding, Gap, Kind, Prediction, Verdict, accuracy, chances
from pytest_gradmask.verdict.stats import (
    difference_bounds,
    images_to_establish,
    images_to_exclude,
    mcnemar_p,
    mean_p,
    paired_interval,
)


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its reasons, the gap behind it and, if more images would settle it, how many."""

    verdict: Verdict
    reasons: tuple[str, ...]
    gap: Gap | None
    images_needed: int | None = None


def measure_gap(
    clean: Sequence[bool],
    predictions: Mapping[int, Prediction],
    attacks: Sequence[AttackResult],
    confidence: float,
    analysis: InterimAnalysis | None = None,
) -> Gap | None:
    """The paired gap between adaptive attacks and placebo; None where either did not run.

    Args:
        clean, predictions, attacks, confidence, analysis: as of `decide`.
    """
    done = [result for result in attacks if result.kind == "gradient" or result.status == "done"]
    if not {"adaptive", "placebo"} <= {result.kind for result in done}:
        return None
    under = _Under(clean, predictions, done)
    # What is left of each image beside the placebo, minus what is left of it beside the adaptive attacks.
    pairs = zip(under("gradient", "placebo"), under("gradient", "adaptive"), strict=True)
    differences = [beside_placebo - beside_adaptive for beside_placebo, beside_adaptive in pairs]
    excess, placebo_only = (math.fsum(max(sign * each, 0.0) for each in differences) for sign in (1, -1))
    total = len(clean)
    analysis = analysis or InterimAnalysis(total)
    # After a failed or a spared attack the audit looked, or would have.
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
        excess, placebo_only, total, (excess - placebo_only) / total, low, high, min(1.0, analyses * p_value), analyses
    )


@dataclass(frozen=True, slots=True)
class _Under:
    """Chances of right answers under families of attacks."""

    clean: Sequence[bool]
    predictions: Mapping[int, Prediction]
    attacks: Sequence[AttackResult]

    def __call__(self, *kinds: Kind) -> list[float]:
        return chances(self.clean, self.predictions, [result for result in self.attacks if result.kind in kinds])


def _hardly_anything_left(under: _Under, margin: float, confidence: float) -> bool:
    """Whether gradient attacks leave so little that no attack could open a gap of the margin, whatever probes saw."""
    attacks = [result for result in under.attacks if result.kind == "gradient"]
    return accuracy(under.clean, under.predictions, attacks, confidence).high < margin


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
        attacks: every attack that was to run, the failed and skipped ones included.
        findings: what the probes saw.
        margin: a gap above this share of the images is masking; a gap surely below it is none.
        confidence: in (0.5, 1), of every bound and test.
        predictions: of a randomized defense without an attack, for every image; none for a deterministic one.
        analysis: which of several this is; by default the only one.
    """
    total, predictions = len(clean), predictions or {}
    analysis = analysis or InterimAnalysis(total)
    under = _Under(clean, predictions, attacks)
    if not any(clean):
        return Decision(
            Verdict.INCONCLUSIVE,
            (
                f"no image of {total} is classified correctly without an attack, so there is nothing to break; "
                "check the labels and the preprocessing",
            ),
            None,
        )
    failures = [result for result in attacks if result.status == "failed"]
    broken_family = [result for result in failures if result.kind != "adaptive"]
    gap = measure_gap(clean, predictions, attacks, confidence, analysis)
    if broken_family or gap is None:
        why = [f"{result.name} failed: {result.note}" for result in failures]
        if gap is None and not broken_family:
            why.append("no adaptive attack could run, so there is nothing to compare the gradient attacks with")
        return Decision(Verdict.INCONCLUSIVE, tuple(why), gap)

    points = f"{100 * margin:.3g} points"
    average = " on average" if predictions else ""
    if gap.low > 0 and gap.p_value < 1 - confidence and gap.estimate > margin:
        strongest = max((result for result in attacks if result.kind == "adaptive"), key=lambda r: len(r.broken))
        return Decision(
            Verdict.MASKED,
            (
                f"adaptive attacks break {gap.excess:.4g} of {total} images{average} that neither "
                f"a gradient attack nor the placebo breaks: a gap of {gap}, above the margin of {points}",
                f"{strongest.name} alone breaks {len(strongest.broken)}; in a paired test, all adaptive attacks "
                f"together against the placebo give p = {gap.p_value:.2g}",
            ),
            gap,
        )
    obstacles = [f"{result.name} failed: {result.note}" for result in failures]
    if not _hardly_anything_left(under, margin, analysis.upper_level(confidence)):
        obstacles += [f"{finding.id}: {finding.message}" for finding in findings if finding.undermines_attacks]
    extra = (math.fsum(under("gradient")) - math.fsum(under("gradient", "placebo"))) / total
    if extra > margin:
        obstacles.append(
            f"the gradient attacks have not converged: the placebo alone breaks another {100 * extra:.1f} points; "
            "use a larger budget"
        )
    if gap.high < margin:
        if obstacles:
            return Decision(Verdict.INCONCLUSIVE, tuple(obstacles), gap)
        return Decision(
            Verdict.NOT_MASKED,
            (f"no gap above {points}: {gap} at {confidence:.0%} confidence on {total} images",),
            gap,
        )
    if gap.estimate > margin:
        needed = images_to_establish(gap.excess / total, gap.placebo_only / total, confidence, gap.analyses)
        what = f"the gap of {gap} is above the margin of {points}, but {total} images do not settle it"
    else:
        needed = images_to_exclude(margin, gap.excess / total, confidence)
        what = f"a gap of {gap} leaves open whether it is above the margin of {points}"
    if needed is None:
        advice = "more images of this kind will hardly settle it: use a larger budget or another margin"
    else:
        needed = max(needed, total + 1)
        advice = f"if it goes on like this, about {needed} images settle it"
    return Decision(Verdict.INCONCLUSIVE, (*obstacles, what, advice), gap, needed)
