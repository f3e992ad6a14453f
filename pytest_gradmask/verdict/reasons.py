"""The reasons of a verdict in sentences. The decision itself is in `rule`. Pure functions, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_gradmask.verdict.interim import InterimAnalysis
from pytest_gradmask.verdict.paired import images_to_establish_gap, images_to_exclude_gap
from pytest_gradmask.verdict.results import AttackResult, Finding, Gap, Proportion

#: Numbers of images are estimated by normal scores. Exact tests may need a few more, and one too few costs an attempt.
_SPARE = 1.05


def nothing_correct(total: int) -> str:
    """Why there is no verdict where the defense classifies nothing correctly."""
    return (
        f"no image of {total} is classified correctly without an attack, so there is nothing to break; "
        "check the labels and the preprocessing"
    )


def no_comparison(failures: Sequence[AttackResult], gap: Gap | None) -> tuple[str, ...]:
    """Why adaptive attacks and gradient attacks cannot be compared: what failed, or that nothing adaptive ran."""
    why = [_failed(result) for result in failures]
    if gap is None and all(result.kind == "adaptive" for result in failures):
        why.append("no adaptive attack could run, so there is nothing to compare the gradient attacks with")
    return tuple(why)


def no_gradient(share: Proportion, attacks: Sequence[AttackResult]) -> list[str]:
    """That a plain function has no gradient that could be masked, and what attacks leave that ask for outputs alone."""
    ran = [result.name for result in attacks if result.status == "done"]
    under = f"under {', '.join(ran)}" if ran else "as no attack could run"
    found = f"no gradient to judge: black-box robustness is at most {share} {under}"
    return [found, *(_failed(result) for result in attacks if result.status == "failed")]


def out_of_time(gap: Gap | None, confidence: float) -> str:
    """That the deadline was over, and what is known by then."""
    more = "give it more time; attacks that have finished are in the cache, if there is one"
    if gap is None:
        return f"the deadline was over before gradient attacks and adaptive attacks could be compared; {more}"
    low, high = (f"{100 * bound:.3g}" for bound in (gap.low, gap.high))
    return (
        f"the deadline was over before the verdict was decided. So far, with the attacks that ran, the gap is between "
        f"{low} and {high} percentage points at {confidence:.0%} confidence; {more}"
    )


def masked(gap: Gap, attacks: Sequence[AttackResult], margin: float, *, randomized: bool) -> tuple[str, ...]:
    """What adaptive attacks break beyond the others, and which of them breaks most."""
    strongest = max((result for result in attacks if result.kind == "adaptive"), key=lambda r: len(r.broken))
    average = " on average" if randomized else ""
    return (
        f"of {gap.total} images classified correctly, adaptive attacks break {gap.excess:.4g}{average} that neither "
        f"a gradient attack nor the placebo breaks: a gap of {gap}, above the margin of {_points(margin)}",
        f"{strongest.name} alone breaks {len(strongest.broken)}; in a paired test, all adaptive attacks "
        f"together against the placebo give p = {gap.p_value:.2g}",
    )


def not_masked(gap: Gap, margin: float, confidence: float) -> str:
    """That a gap above the margin is excluded."""
    return (
        f"no gap above {_points(margin)}: it is {100 * gap.estimate:.1f} {gap.bounds} "
        f"at {confidence:.0%} confidence on {gap.total} images classified correctly"
    )


def obstacles(
    failures: Sequence[AttackResult], undermining: Sequence[Finding], unconverged: float, margin: float
) -> tuple[str, ...]:
    """What keeps an audit from saying ``NOT_MASKED``, whatever the gap is.

    Args:
        failures: adaptive attacks that failed.
        undermining: findings that make a failed attack prove nothing.
        unconverged: share of the images that the placebo breaks and no gradient attack does.
        margin: of the verdict.
    """
    found = [_failed(result) for result in failures]
    found += [f"{finding.id}: {finding.message}" for finding in undermining]
    if unconverged > margin:
        found.append(
            "the gradient attacks have not converged: the placebo alone breaks another "
            f"{100 * unconverged:.1f} percentage points; use a larger budget"
        )
    return tuple(found)


def undecided(gap: Gap, margin: float, needed: int | None, *, attempt: int) -> tuple[str, str]:
    """That these images do not decide, and how many would in the next attempt."""
    if gap.estimate > margin:
        what = (
            f"the gap of {gap} is above the margin of {_points(margin)}, but {gap.total} images classified correctly "
            "do not decide"
        )
    else:
        what = f"a gap of {gap} leaves open whether it is above the margin of {_points(margin)}"
    if needed is None:
        return what, "more images of this kind will hardly decide: use a larger budget or another margin"
    return what, f"if it goes on like this, about {needed} images decide, audited as attempt {attempt}"


def images_needed(gap: Gap, margin: float, confidence: float, *, images: int, attempt: int) -> int | None:
    """About how many images would decide, if more are like these; None if no number would.

    Args:
        gap: measured on the images classified correctly.
        margin, confidence: of the verdict.
        images: of the audit, misclassified ones included.
        attempt: the next one, which has a share of the error.
    """
    rate, other = gap.excess / gap.total, gap.placebo_only / gap.total
    # The last of several decisions.
    level = 1 - (1 - confidence) * InterimAnalysis(gap.total, number=2, attempt=attempt).lower_share(1, complete=True)
    if gap.estimate > margin:
        needed = images_to_establish_gap(rate, other, level)
    else:
        needed = images_to_exclude_gap(margin, rate, other, level)
    return None if needed is None else max(math.ceil(_SPARE * needed * images / gap.total), images + 1)


def _failed(result: AttackResult) -> str:
    return f"{result.name} failed: {result.note}"


def _points(share: float) -> str:
    return f"{100 * share:.3g} percentage points"
