"""Simulated audits: what attacks break is drawn from a known population, and the audit's rules judge it.

No model and no attack runs. A population says with what chance each attack breaks an image, so the truth is known. The
audit's own rule, `verdict.rule.judge`, decides thousands of audits at once, which makes millions of audits feasible.
`disagreements` compares that with `verdict.rule.decide`, which audits call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from audits.calibration.populations import Counts, Patterns, Population, draw, patterns
from pytest_gradmask import AttackResult, Verdict
from pytest_gradmask.auditing.research import InterimAnalysis, decide, judge, plan_analyses, rejected_below

#: In the order in which `plan.plan_attacks` runs them.
ADAPTIVE = ("bpda", "transfer-backbone", "square", "zero-order")
CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class Evidence:
    """What adaptive attacks and the placebo broke in many audits, in images.

    Attributes:
        analysis: the interim analysis that it belongs to.
        planned: adaptive attacks that were to run.
        complete: whether all of them have run on these images.
        excess: images that an adaptive attack breaks and the placebo does not; one number for each audit.
        placebo_only: the other way round.
        placebo: images that the placebo breaks.
    """

    analysis: InterimAnalysis
    planned: int
    complete: bool
    excess: Counts
    placebo_only: Counts
    placebo: Counts

    @property
    def images(self) -> int:
        """Attacked by then."""
        return self.analysis.images

    @property
    def share(self) -> float:
        """Of the error of ``MASKED``, what this decision has."""
        return self.analysis.lower_share(self.planned, complete=self.complete)

    def excluded(self, gap: float) -> NDArray[np.bool_]:
        """Whether a gap of this size or more is rejected, at the level of the analysis."""
        (excess, placebo_only), which = _once(self.excess, self.placebo_only)
        level = 1 - self.analysis.upper_level(CONFIDENCE)
        found: NDArray[np.bool_] = rejected_below(excess, placebo_only, self.images, gap, level)[which]
        return found

    def established(self, gap: float) -> NDArray[np.bool_]:
        """Whether a gap of this size or less is rejected, at the level of this decision."""
        (excess, placebo_only), which = _once(self.excess, self.placebo_only)
        level = (1 - CONFIDENCE) * self.share
        found: NDArray[np.bool_] = rejected_below(placebo_only, excess, self.images, -gap, level)[which]
        return found

    def p_values(self) -> NDArray[np.float64]:
        """Of each audit's paired test, adjusted for all decisions: 0 where it rejects, and 1 elsewhere."""
        return np.where(self.established(0.0), 0.0, 1.0)


#: From evidence to numbers of verdicts in `VERDICTS`, one for each audit.
Rule = Callable[[Evidence], Counts]
MASKED, NOT_MASKED, INCONCLUSIVE = range(3)
VERDICTS = (Verdict.MASKED, Verdict.NOT_MASKED, Verdict.INCONCLUSIVE)


def audit_rule(margin: float) -> Rule:
    """The audit's own rule, where no attack failed and no finding undermines the attacks."""

    def rule(evidence: Evidence) -> Counts:
        verdicts = judge(
            excluded=evidence.excluded(margin),
            estimate=(evidence.excess - evidence.placebo_only) / evidence.images,
            p_value=evidence.p_values(),
            unconverged=evidence.placebo / evidence.images,
            margin=margin,
            confidence=CONFIDENCE,
        )
        return np.select([verdicts == verdict for verdict in VERDICTS], [MASKED, NOT_MASKED, INCONCLUSIVE])

    return rule


def _once(first: Counts, second: Counts) -> tuple[tuple[Counts, Counts], Counts]:
    """Each pair of counts once, and for every place which pair it has: quantiles are slow."""
    base = int(second.max(initial=0)) + 1
    pairs, which = np.unique(first * base + second, return_inverse=True)
    return (pairs // base, pairs % base), which.reshape(first.shape)


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of many simulated audits.

    Attributes:
        audits: how many.
        exhaustive: number of each verdict, in the order of `VERDICTS`, when every attack runs on every image.
        in_turn: the same when an audit goes in batches and stops as `pytest_gradmask.audit` does.
        analyses: of the latter, how many ended after each adaptive attack.
        sizes: of the latter, how many ended at each number of images.
        misses: of the latter, in how many a gap of the true size or less is rejected, and in how many one of the true
            size or more. The true gap is that of the attacks that ran. None if they were not compared.
    """

    audits: int
    exhaustive: list[int]
    in_turn: list[int]
    analyses: list[int]
    sizes: dict[int, int]
    misses: list[int] | None


@dataclass(frozen=True, slots=True)
class Ended:
    """For each audit its verdict, the last adaptive attack that ran and the number of images attacked."""

    verdicts: Counts
    attacks: Counts
    images: Counts

    def end(self, which: Counts, verdicts: Counts, last: int, analysis: InterimAnalysis) -> None:
        self.verdicts[which], self.attacks[which], self.images[which] = verdicts, last, analysis.images


def simulate(
    population: Population,
    images: int,
    audits: int,
    rule: Rule,
    seed: int = 0,
    margin: float = 0.05,
    *,
    bounds: bool = True,
) -> Tally:
    """Draw audits and judge them, all attacks at once and in turn.

    In turn means as audits run, in growing batches. After every adaptive attack, if the placebo so far would make the
    verdict `MASKED`, the placebo gets the budget that it is due by then. If the verdict is then `MASKED`, the audit
    ends, and attacks that have not run count as skipped early. After a batch the placebo gets one restart, and if the
    verdict is then `NOT_MASKED`, the audit ends. After the last batch the placebo gets the rest.

    Args:
        margin: of the rule; it decides at how many images there are analyses.
        bounds: whether to compare the gap's bounds with the true gap.
    """
    seen, generator = patterns(population), np.random.default_rng(seed)
    analyses = plan_analyses(images, margin, CONFIDENCE)
    sizes = np.diff([0, *(analysis.images for analysis in analyses)])
    batches = [draw(population, int(size), audits, generator) for size in sizes]
    ended, missed = in_turn(seen, batches, analyses, rule, bounds=bounds)
    final, drawn = len(population.costs) - 1, np.sum(batches, axis=0)
    complete = evidence(seen, np.zeros_like(drawn), drawn, final, None, InterimAnalysis(images))
    return Tally(
        audits,
        np.bincount(rule(complete), minlength=len(VERDICTS)).tolist(),
        np.bincount(ended.verdicts, minlength=len(VERDICTS)).tolist(),
        np.bincount(ended.attacks, minlength=final + 1).tolist(),
        {analysis.images: int((ended.images == analysis.images).sum()) for analysis in analyses},
        missed.sum(1).tolist() if bounds else None,
    )


def in_turn(
    seen: Patterns, batches: Sequence[Counts], analyses: Sequence[InterimAnalysis], rule: Rule, *, bounds: bool = False
) -> tuple[Ended, NDArray[np.bool_]]:
    """Judge drawn audits in turn: how each ends, and whether its lower and its upper bound miss the true gap.

    Args:
        seen: what can become of an image.
        batches: audits by patterns, of the images that each analysis adds.
        analyses: those of the audits.
        rule: from evidence to verdicts.
        bounds: whether to compare the gap's bounds with the true gap. Otherwise none is missed.
    """
    final, audits = seen.broken.shape[1] - 1, len(batches[0])
    before = np.zeros_like(batches[0])
    ended = Ended(np.full(audits, INCONCLUSIVE), np.full(audits, final), np.full(audits, analyses[-1].images))
    missed = np.zeros((2, audits), dtype=bool)
    for analysis, drawn in zip(analyses, batches, strict=True):
        stops: list[tuple[int, int | None]] = [(last, None) for last in range(final + 1)]
        for last, stage in [*stops, (final, 0), *([(final, None)] if analysis is analyses[-1] else [])]:
            going = np.flatnonzero(ended.verdicts == INCONCLUSIVE)
            found = evidence(seen, before[going], drawn[going], last, stage, analysis)
            said = rule(found)
            # After a single attack an audit only asks whether the defense masks. Before the placebo has had all that it
            # is due, an audit only asks whether the defense does not mask.
            counts = np.isin(said, {None: [MASKED], 0: [NOT_MASKED]}[stage])
            if (last, stage) == (final, None) and analysis is analyses[-1]:
                counts = np.full(len(going), True)
            ended.end(going[counts], said[counts], last, analysis)
            earlier, newest = seen.gap(final, stage), seen.gap(last, stage)
            truth = earlier + (newest - earlier) * drawn[0].sum() / analysis.images
            if bounds and counts.any():
                misses = np.stack([found.established(truth), found.excluded(truth)])
                missed[:, going[counts]] = misses[:, counts]
        before = before + drawn
    return ended, missed


def evidence(
    seen: Patterns, earlier: Counts, newest: Counts, last: int, stage: int | None, analysis: InterimAnalysis
) -> Evidence:
    """What drawn audits show at an interim analysis.

    Args:
        earlier: audits by patterns, of the batches that all attacks have had.
        newest: of the batch that the adaptive attacks up to number ``last`` have had.
        stage: how far the placebo has come: as far as the adaptive attack of that number, -1 for not at all; None for
            as far as the adaptive attacks in each batch.
    """
    final = seen.broken.shape[1] - 1
    counted: list[Counts] = [np.zeros(len(newest), dtype=np.int64)] * 3
    for drawn, reached in ((earlier, final), (newest, last)):
        broken, by_placebo = seen.broken[:, : reached + 1].any(1), seen.stage <= (reached if stage is None else stage)
        for which, what in enumerate((broken & ~by_placebo, by_placebo & ~broken, by_placebo)):
            counted[which] = counted[which] + drawn @ what.astype(np.int64)
    return Evidence(analysis, final + 1, last == final, *counted)


def results(seen: Patterns, drawn: Counts, last: int, stage: int) -> tuple[list[bool], list[AttackResult]]:
    """One drawn audit as `decide` gets it: clean correctness, and results. Arguments as for `evidence`."""
    image = np.repeat(np.arange(len(drawn)), drawn)
    everywhere, survivors = tuple(range(len(image))), tuple(np.flatnonzero(seen.survives[image]).tolist())

    def indices(chosen: NDArray[np.bool_]) -> tuple[int, ...]:
        return tuple(np.flatnonzero(chosen[image]).tolist())

    found = [AttackResult("apgd-ce", "gradient", attacked=everywhere, broken=indices(~seen.survives))]
    for number, name in enumerate(ADAPTIVE):
        if number <= last:
            found.append(AttackResult(name, "adaptive", attacked=survivors, broken=indices(seen.broken[:, number])))
        else:
            found.append(AttackResult(name, "adaptive", status="skipped-early"))
    found.append(AttackResult("placebo", "placebo", attacked=survivors, broken=indices(seen.stage <= stage)))
    return [True] * len(image), found


def disagreements(
    population: Population,
    images: int,
    margin: float,
    audits: int,
    seed: int,
    *,
    each: int = 1,
    only_last: bool = False,
) -> list[str]:
    """Where `audit_rule` and `decide` differ: ``each`` audits of each verdict, analysis and placebo (with, without).

    Args:
        only_last: only the last decision, with the placebo. `decide` takes its time.
    """
    seen = patterns(population)
    final = len(population.costs) - 1
    found = []
    for analysis in plan_analyses(images, margin, CONFIDENCE)[-1 if only_last else 0 :]:
        drawn = draw(population, analysis.images, audits, seed)
        for last, placebo in [(final, True)] if only_last else product(range(final + 1), (False, True)):
            stage = last if placebo else -1
            numbers = audit_rule(margin)(evidence(seen, np.zeros_like(drawn), drawn, last, stage, analysis))
            for number, verdict in enumerate(VERDICTS):
                for index in np.flatnonzero(numbers == number)[:each]:
                    clean, attacks = results(seen, drawn[index], last, stage)
                    theirs = decide(
                        clean, attacks, (), margin=margin, confidence=CONFIDENCE, analysis=analysis,
                        complete=last == final,
                    ).verdict  # fmt: skip
                    if theirs is not verdict:
                        where = f"audit {index} of {analysis.images} images after attack {last}"
                        found.append(f"{where}: {verdict} here, {theirs} by decide")
    return found
