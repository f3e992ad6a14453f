"""Simulated audits: what attacks break is drawn from a known population, and the audit's rules judge it.

No model and no attack runs. A population says with what chance an image falls to which attacks, so the truth is
known. `judge` has the rules of `pytest_gradmask.verdict.decide` for thousands of audits at once, which is what makes
millions of audits feasible; `disagreements` asks `decide` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from audits.calibration.populations import Counts, Patterns, Population, draw, patterns
from pytest_gradmask.results import AttackResult, Verdict
from pytest_gradmask.verdict import decide

#: In the order in which `plan.plan_attacks` runs them.
ADAPTIVE = ("bpda", "transfer-backbone", "square", "zero-order")
CONFIDENCE = 0.99
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Evidence:
    """What adaptive attacks and the placebo broke in many audits, in images.

    Attributes:
        images: of each audit.
        planned: adaptive attacks that were to run.
        excess: images that fall to an adaptive attack and not to the placebo; one number an audit.
        placebo_only: the other way round.
        placebo: images that fall to the placebo.
    """

    images: int
    planned: int
    excess: Counts
    placebo_only: Counts
    placebo: Counts

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`stats.paired_interval` of each audit's gap."""
        (excess, placebo_only), which = _once(self.excess, self.placebo_only)
        discordant, half = excess + placebo_only, 1 - (1 - CONFIDENCE) / 2
        sign = 2 * _clopper_pearson(excess, discordant, half)[0] - 1
        rate_low, rate_high = _clopper_pearson(discordant, self.images, half)
        low = sign * np.where(sign > 0, rate_low, rate_high)
        return low[which], _clopper_pearson(excess, self.images, CONFIDENCE)[1][which]

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
        significant = evidence.p_values() * evidence.planned < 1 - CONFIDENCE
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
        exhaustive: number of each verdict, in the order of `VERDICTS`, when every attack runs.
        in_turn: the same when an audit stops as `schedule.attack_in_turn` does.
        looks: of the latter, how many ended after each adaptive attack.
        misses: of the latter, in how many the gap's lower bound is above the true gap of the attacks that ran; of the
            former, in how many the gap's upper bound is below the true gap.
    """

    audits: int
    exhaustive: list[int]
    in_turn: list[int]
    looks: list[int]
    misses: list[int]


def simulate(population: Population, images: int, audits: int, rule: Rule, seed: int = 0) -> Tally:
    """Draw audits and judge them, all attacks at once and in turn.

    In turn means as the schedule does it: after each adaptive attack, if a placebo that breaks nothing would make the
    verdict `MASKED`, the placebo gets the budget it is due by then, and if the verdict is then `MASKED`, the audit
    ends; attacks that have not run count as spared.
    """
    seen = patterns(population)
    drawn = draw(population, images, audits, seed)
    final = len(population.costs) - 1
    complete = evidence(seen, drawn, final, True)
    exhaustive = rule(complete)
    ends, in_turn = np.full(audits, final), exhaustive.copy()
    low, high = complete.bounds()
    going = np.arange(audits)
    for look in range(final):
        hopeful = going[rule(evidence(seen, drawn[going], look, False)) == MASKED]
        certain = hopeful[rule(evidence(seen, drawn[hopeful], look, True)) == MASKED]
        ends[certain], in_turn[certain] = look, MASKED
        low[certain] = evidence(seen, drawn[certain], look, True).bounds()[0]
        going = np.setdiff1d(going, certain)
    gaps = np.array([seen.gap(last) for last in range(final + 1)])
    return Tally(
        audits,
        np.bincount(exhaustive, minlength=len(VERDICTS)).tolist(),
        np.bincount(in_turn, minlength=len(VERDICTS)).tolist(),
        np.bincount(ends, minlength=final + 1).tolist(),
        [int((low > gaps[ends] + _ROUNDING).sum()), int((high < gaps[final] - _ROUNDING).sum())],
    )


def evidence(seen: Patterns, drawn: Counts, last: int, placebo: bool) -> Evidence:
    """What drawn audits show after the adaptive attack number ``last``.

    Args:
        drawn: audits by patterns.
        placebo: whether the placebo has run; otherwise it has broken nothing.
    """
    gone = (seen.stage <= last) & placebo
    fallen = seen.falls[:, : last + 1].any(1)
    counted = [drawn @ what.astype(np.int64) for what in (fallen & ~gone, gone & ~fallen, gone)]
    return Evidence(int(drawn[0].sum()) if len(drawn) else 1, seen.falls.shape[1], *counted)


def results(seen: Patterns, drawn: Counts, last: int, placebo: bool) -> tuple[list[bool], list[AttackResult]]:
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
            found.append(AttackResult(name, "adaptive", status="spared"))
    found.append(AttackResult("placebo", "placebo", standing, indices((seen.stage <= last) & placebo)))
    return seen.clean[image].tolist(), found


def disagreements(
    population: Population, images: int, margin: float, audits: int, seed: int, each: int = 1
) -> list[str]:
    """Where `judge` and `decide` part: of each verdict at each look, with and without placebo, ``each`` audits."""
    seen, drawn = patterns(population), draw(population, images, audits, seed)
    found = []
    for last, placebo in product(range(len(population.costs)), (False, True)):
        numbers = judge(margin)(evidence(seen, drawn, last, placebo))
        for number, verdict in enumerate(VERDICTS):
            for index in np.flatnonzero(numbers == number)[:each]:
                clean, attacks = results(seen, drawn[index], last, placebo)
                theirs = decide(clean, attacks, (), margin=margin, confidence=CONFIDENCE).verdict
                if theirs is not verdict:
                    found.append(f"audit {index} after attack {last}: {verdict} here, {theirs} by decide")
    return found
