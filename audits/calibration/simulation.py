"""Simulated audits: what attacks break is drawn from a known population, and the audit's rules judge it.

No model and no attack runs. A population says with what chance an image falls to which attacks, so the truth is
known. `judge` has the rules of `verdict.rule.decide` for thousands of audits at once, which is what makes millions of
audits feasible; `disagreements` asks `decide` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from audits.calibration.populations import Counts, Patterns, Population, draw, patterns
from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.results import AttackResult, Verdict
from pytest_gradmask.verdict.rule import decide

#: In the order in which `plan.plan_attacks` runs them.
ADAPTIVE = ("bpda", "transfer-backbone", "square", "zero-order")
CONFIDENCE = 0.99
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Evidence:
    """What adaptive attacks and the placebo broke in many audits, in images.

    Attributes:
        analysis: at which it is seen.
        planned: adaptive attacks that were to run.
        excess: images that fall to an adaptive attack and not to the placebo; one number an audit.
        placebo_only: the other way round.
        placebo: images that fall to the placebo.
    """

    analysis: InterimAnalysis
    planned: int
    excess: Counts
    placebo_only: Counts
    placebo: Counts

    @property
    def images(self) -> int:
        """Seen by then."""
        return self.analysis.images

    def only(self, which: NDArray[np.bool_]) -> Evidence:
        """Some of the audits."""
        chosen = (counts[which] for counts in (self.excess, self.placebo_only, self.placebo))
        return Evidence(self.analysis, self.planned, *chosen)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`stats.paired_interval` of each audit's gap, at the confidences of the look."""
        (excess, placebo_only), which = _once(self.excess, self.placebo_only)
        discordant, half = excess + placebo_only, 1 - (1 - self.analysis.lower_level(CONFIDENCE)) / 2
        sign = 2 * _clopper_pearson(excess, discordant, half)[0] - 1
        rate_low, rate_high = _clopper_pearson(discordant, self.images, half)
        low = sign * np.where(sign > 0, rate_low, rate_high)
        high = _clopper_pearson(excess, self.images, self.analysis.upper_level(CONFIDENCE))[1]
        return low[which], high[which]

    def p_values(self) -> NDArray[np.float64]:
        """`stats.mcnemar_p` of each audit, without correction."""
        (ours, theirs), which = _once(self.excess, self.placebo_only)
        p: NDArray[np.float64] = binom.sf(ours - 1, ours + theirs, 0.5)[which]
        return p


#: From evidence to the numbers of verdicts in `Verdict`, one an audit.
Rule = Callable[[Evidence], Counts]
MASKED, NOT_MASKED, INCONCLUSIVE = range(3)
VERDICTS = (Verdict.MASKED, Verdict.NOT_MASKED, Verdict.INCONCLUSIVE)


def judge(margin: float) -> Rule:
    """The audit's own rule, `decide`, where no attack failed and no finding undermines the attacks."""

    def rule(evidence: Evidence) -> Counts:
        significant = evidence.p_values() * evidence.planned * evidence.analysis.number < 1 - CONFIDENCE
        low, high = evidence.bounds()
        estimate = (evidence.excess - evidence.placebo_only) / evidence.images
        masked = (low > 0) & significant & (estimate > margin)
        excluded = (high < margin) & (evidence.placebo / evidence.images <= margin)
        return np.where(masked, MASKED, np.where(excluded, NOT_MASKED, INCONCLUSIVE))

    return rule


def _once(first: Counts, second: Counts) -> tuple[tuple[Counts, Counts], Counts]:
    """Each pair of counts once, and for every place which pair it has: quantiles are slow."""
    base = int(second.max(initial=0)) + 1
    pairs, which = np.unique(first * base + second, return_inverse=True)
    return (pairs // base, pairs % base), which.reshape(first.shape)


def _clopper_pearson(
    successes: Counts, trials: Counts | int, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`stats.clopper_pearson` of arrays; no trials have the bounds 0 and 1."""
    failures = trials - successes
    # Impossible parameters give NaN, which the clauses for nought replace.
    low = np.where(successes == 0, 0.0, beta.ppf(1 - confidence, successes, failures + 1))
    high = np.where(failures == 0, 1.0, beta.ppf(confidence, successes + 1, failures))
    return low, high


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of many simulated audits.

    Attributes:
        audits: how many.
        exhaustive: number of each verdict, in the order of `VERDICTS`, when every attack runs on every image.
        in_turn: the same when an audit goes in batches and stops as `auditing.audit` does.
        analyses: of the latter, how many ended after each adaptive attack.
        sizes: of the latter, how many ended at each number of images.
        misses: of the latter, in how many the gap's lower bound is above the true gap of the attacks that ran, and in
            how many its upper bound is below that.
    """

    audits: int
    exhaustive: list[int]
    in_turn: list[int]
    analyses: list[int]
    sizes: dict[int, int]
    misses: list[int]


@dataclass(frozen=True, slots=True)
class _Ended:
    """For each audit its verdict, the last adaptive attack it ran and the images it looked at."""

    verdicts: Counts
    attacks: Counts
    images: Counts

    def end(self, which: Counts, verdicts: Counts, last: int, analysis: InterimAnalysis) -> None:
        self.verdicts[which], self.attacks[which], self.images[which] = verdicts, last, analysis.images


def simulate(
    population: Population, images: int, audits: int, rule: Rule, seed: int = 0, margin: float = 0.05
) -> Tally:
    """Draw audits and judge them, all attacks at once and in turn.

    In turn means as audits run: in growing batches, and in each after every adaptive attack, if the placebo so far
    would make the verdict `MASKED`, the placebo gets the budget it is due by then, and if the verdict is then
    `MASKED`, the audit ends; attacks that have not run count as spared. After a batch the placebo gets one restart, and
    if the verdict is then `NOT_MASKED`, the audit ends. After the last one it gets the rest.

    Args:
        margin: of the rule; it says at how many images audits look.
    """
    seen, generator = patterns(population), np.random.default_rng(seed)
    final = len(population.costs) - 1
    analyses = plan_analyses(images, margin, CONFIDENCE)
    sizes = np.diff([0, *(analysis.images for analysis in analyses)])
    batches = [draw(population, int(size), audits, generator) for size in sizes]
    before = np.zeros_like(batches[0])
    ended = _Ended(np.full(audits, INCONCLUSIVE), np.full(audits, final), np.full(audits, images))
    missed = np.zeros((2, audits), dtype=bool)
    for analysis, drawn in zip(analyses, batches, strict=True):
        stops: list[tuple[int, int | None]] = [(last, None) for last in range(final + 1)]
        for last, stage in [*stops, (final, 0), *([(final, None)] if analysis is analyses[-1] else [])]:
            going = np.flatnonzero(ended.verdicts == INCONCLUSIVE)
            found = evidence(seen, before[going], drawn[going], last, stage, analysis)
            said = rule(found)
            # After a single attack an audit only asks whether the defense masks; before the placebo has had all it is
            # due, only whether it does not.
            counts = np.isin(said, {None: [MASKED], 0: [NOT_MASKED]}[stage])
            if (last, stage) == (final, None) and analysis is analyses[-1]:
                counts = np.full(len(going), True)
            ended.end(going[counts], said[counts], last, analysis)
            low, high = found.bounds()
            earlier, newest = seen.gap(final, stage), seen.gap(last, stage)
            truth = earlier + (newest - earlier) * drawn[0].sum() / analysis.images
            missed[:, going[counts]] = np.stack([low > truth + _ROUNDING, high < truth - _ROUNDING])[:, counts]
        before = before + drawn
    complete = evidence(seen, np.zeros_like(before), before, final, None, InterimAnalysis(images))
    return Tally(
        audits,
        np.bincount(rule(complete), minlength=len(VERDICTS)).tolist(),
        np.bincount(ended.verdicts, minlength=len(VERDICTS)).tolist(),
        np.bincount(ended.attacks, minlength=final + 1).tolist(),
        {analysis.images: int((ended.images == analysis.images).sum()) for analysis in analyses},
        missed.sum(1).tolist(),
    )


def evidence(
    seen: Patterns, earlier: Counts, newest: Counts, last: int, stage: int | None, analysis: InterimAnalysis
) -> Evidence:
    """What drawn audits show at a look.

    Args:
        earlier: audits by patterns, of the batches that all attacks have had.
        newest: of the batch that the adaptive attacks up to number ``last`` have had.
        stage: how far the placebo has come: as far as the adaptive attack of that number, -1 for not at all; None for
            as far as the adaptive attacks in each batch.
    """
    final = seen.falls.shape[1] - 1
    counted: list[Counts] = [np.zeros(len(newest), dtype=np.int64)] * 3
    for drawn, reached in ((earlier, final), (newest, last)):
        fallen, gone = seen.falls[:, : reached + 1].any(1), seen.stage <= (reached if stage is None else stage)
        for which, what in enumerate((fallen & ~gone, gone & ~fallen, gone)):
            counted[which] = counted[which] + drawn @ what.astype(np.int64)
    return Evidence(analysis, final + 1, *counted)


def results(seen: Patterns, drawn: Counts, last: int, stage: int) -> tuple[list[bool], list[AttackResult]]:
    """One drawn audit as `decide` gets it: clean correctness, and results. Arguments as for `evidence`."""
    image = np.repeat(np.arange(len(drawn)), drawn)
    everywhere, standing = tuple(range(len(image))), tuple(np.flatnonzero(seen.standing[image]).tolist())

    def indices(chosen: NDArray[np.bool_]) -> tuple[int, ...]:
        return tuple(np.flatnonzero(chosen[image]).tolist())

    found = [AttackResult("apgd-ce", "gradient", everywhere, indices(seen.clean & ~seen.standing))]
    for number, name in enumerate(ADAPTIVE):
        if number <= last:
            found.append(AttackResult(name, "adaptive", standing, indices(seen.falls[:, number])))
        else:
            found.append(AttackResult(name, "adaptive", status="skipped-early"))
    found.append(AttackResult("placebo", "placebo", standing, indices(seen.stage <= stage)))
    return seen.clean[image].tolist(), found


def disagreements(
    population: Population, images: int, margin: float, audits: int, seed: int, each: int = 1
) -> list[str]:
    """Where `judge` and `decide` part: of each verdict at each look, with and without placebo, ``each`` audits."""
    seen = patterns(population)
    found = []
    for analysis in plan_analyses(images, margin, CONFIDENCE):
        drawn = draw(population, analysis.images, audits, seed)
        for last, placebo in product(range(len(population.costs)), (False, True)):
            stage = last if placebo else -1
            numbers = judge(margin)(evidence(seen, np.zeros_like(drawn), drawn, last, stage, analysis))
            for number, verdict in enumerate(VERDICTS):
                for index in np.flatnonzero(numbers == number)[:each]:
                    clean, attacks = results(seen, drawn[index], last, stage)
                    theirs = decide(clean, attacks, (), margin=margin, confidence=CONFIDENCE, analysis=analysis).verdict
                    if theirs is not verdict:
                        where = f"audit {index} of {analysis.images} images after attack {last}"
                        found.append(f"{where}: {verdict} here, {theirs} by decide")
    return found
