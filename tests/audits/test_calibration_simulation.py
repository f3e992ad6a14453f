"""Simulated audits: verdicts are wrong no more often than promised, and a simulation of worse rules would show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from audits.calibration import randomized
from audits.calibration.attempts import repeat
from audits.calibration.exact import (
    by_new_rule,
    by_old_rule,
    chances,
    false_alarm_bound,
    images_for_power,
    not_masked_chances,
    thresholds,
)
from audits.calibration.populations import FINDERS, Counts, Population, draw, patterns
from audits.calibration.randomized import RandomizedPopulation
from audits.calibration.simulation import (
    ADAPTIVE,
    CONFIDENCE,
    INCONCLUSIVE,
    MASKED,
    NOT_MASKED,
    VERDICTS,
    Evidence,
    audit_rule,
    disagreements,
    results,
    simulate,
)
from pytest_gradmask.auditing.audit_run import AuditRun
from pytest_gradmask.auditing.events import ignore
from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.auditing.prepare import Prepared
from pytest_gradmask.auditing.scoring import Scorer, empty_result
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.defense import Defense
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.paired import above_p, below_p, rejected_below
from pytest_gradmask.verdict.results import AttackResult, Prediction
from pytest_gradmask.verdict.rule import decide
from pytest_gradmask.verdict.stats import clopper_pearson
from tests.audits.calibration_toys import CI, SURE, UNEQUAL, agrees, exceeds
from tests.toys import CPU, TINY, KillGradient, masked


def uncorrected(evidence: Evidence) -> Counts:
    """Every decision at 80 % confidence by itself."""
    rejected = rejected_below(evidence.placebo_only, evidence.excess, evidence.images, 0.0, 0.2)
    return np.where(rejected, MASKED, INCONCLUSIVE)


def by_estimate(evidence: Evidence) -> Counts:
    """No gap because the estimate is below the margin of 5 points."""
    estimate = (evidence.excess - evidence.placebo_only) / evidence.images
    return np.where(estimate < 0.05, NOT_MASKED, MASKED)


# error rates


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("spent", [{}, CI], ids=["equal costs", "ci"])
def test_without_masking_masked_is_rare(correlation: float, spent: dict[str, Any]) -> None:
    # At no margin to speak of, so that the tests alone have to prevent false alarms.
    tally = simulate(Population(0.9, 0.1, correlation, **spent), 100, 800, audit_rule(0.001), margin=0.001)
    assert not exceeds(tally.exhaustive[MASKED], tally.audits, 0.01)
    assert not exceeds(tally.in_turn[MASKED], tally.audits, 0.01)
    assert sum(tally.in_turn) == sum(tally.exhaustive) == sum(tally.analyses) == tally.audits


def test_tests_without_correction_are_caught() -> None:
    tally = simulate(Population(0.9, 0.1, **CI), 100, 200, uncorrected, margin=0.001)
    assert exceeds(tally.exhaustive[MASKED], tally.audits, 0.01)
    assert exceeds(tally.in_turn[MASKED], tally.audits, 0.01)


@pytest.mark.parametrize(("share", "caught"), [(0.8, True), (1.0, False)])
def test_a_placebo_with_too_small_a_budget_is_caught(share: float, caught: bool) -> None:
    tally = simulate(Population(0.9, 0.1, placebo_share=share, **CI), 1000, 300, audit_rule(0.001), margin=0.001)
    assert exceeds(tally.exhaustive[MASKED], tally.audits, 0.01) is caught
    assert exceeds(tally.in_turn[MASKED], tally.audits, 0.01) is caught


@pytest.mark.parametrize(("gets", "caught"), [("mean", True), ("unbroken", False)])
@pytest.mark.parametrize(("images", "margin", "broken"), [(200, 0.05, 0.7), (1000, 0.02, 0.5)])
def test_attacks_that_stop_early(images: int, margin: float, broken: float, gets: Any, caught: bool) -> None:
    population = Population.breaking(broken, placebo_gets=gets, **CI | {"restart": 1})
    tally = simulate(population, images, 400, audit_rule(margin), margin=margin)
    assert exceeds(tally.exhaustive[MASKED], tally.audits, 0.01) is caught
    assert exceeds(tally.in_turn[MASKED], tally.audits, 0.01) is caught


@pytest.mark.parametrize(("runs", "between", "caught"), [(7, 0.1, False), (1, 0.1, True), (1, 0.0, False)])
def test_the_worst_of_many_points(runs: int, between: float, caught: bool) -> None:
    population = RandomizedPopulation(runs, between_points=between)
    tally = randomized.simulate(population, 200, 150, 0.02)
    assert exceeds(tally.exhaustive, 150, 0.01) is caught
    assert exceeds(tally.in_turn, 150, 0.01) is caught
    assert (tally.gap > 0.02) is caught


@pytest.mark.parametrize("images", [20, 100, 500])
def test_false_alarms_are_bounded_exactly(images: int) -> None:
    shares = [0.2 / 3] * 3 + [0.8]
    bounds = [false_alarm_bound(images, [step / 20] * 4, shares) for step in range(21)]
    assert 0.001 < max(bounds) <= 0.01
    # Two decisions, each counted as the only one, are not bounded so.
    assert max(false_alarm_bound(images, [step / 20] * 2, [1.0, 1.0]) for step in range(21)) > 0.01


@pytest.mark.parametrize("finders", FINDERS)
def test_a_gap_of_20_points_is_found_on_200_images(finders: Any) -> None:
    tally = simulate(Population(0.6, 0.01, gap=0.2, finders=finders, **CI), 200, 500, audit_rule(0.05))
    for verdicts in (tally.exhaustive, tally.in_turn):
        assert clopper_pearson(verdicts[MASKED], tally.audits, SURE)[0] > 0.95


@pytest.mark.parametrize("finders", FINDERS)
@pytest.mark.parametrize(("images", "margin"), [(20, 0.25), (200, 0.05), (1000, 0.02)])
def test_a_gap_of_the_margin_is_rarely_called_none(images: int, margin: float, finders: Any) -> None:
    tally = simulate(
        Population(0.6, 0.0, gap=margin, finders=finders, **CI), images, 500, audit_rule(margin), margin=margin
    )
    assert not exceeds(tally.exhaustive[NOT_MASKED], tally.audits, 0.01)
    assert not exceeds(tally.in_turn[NOT_MASKED], tally.audits, 0.01)
    assert chances(images, margin, margin)[1] <= 0.01


def test_a_rule_that_trusts_the_estimate_is_caught() -> None:
    tally = simulate(Population(0.6, 0.0, gap=0.05), 200, 300, by_estimate)
    assert exceeds(tally.exhaustive[NOT_MASKED], tally.audits, 0.01)


@pytest.mark.parametrize("gap", [0.02, 0.05, 0.08])
def test_simulation_agrees_with_the_exact_calculation(gap: float) -> None:
    tally = simulate(Population(0.6, 0.0, gap=gap, finders="last"), 200, 1500, audit_rule(0.05))
    for verdict, chance in zip((MASKED, NOT_MASKED), chances(200, 0.05, gap), strict=True):
        assert agrees(tally.exhaustive[verdict], tally.audits, chance)
    assert not agrees(tally.exhaustive[MASKED], tally.audits, chances(200, 0.05, gap + 0.02)[0])


def test_thresholds_by_hand() -> None:
    # Of 200 images, 4 allow a gap of 5.7 points at 99 %, 3 one of 4.96; 11 are the first above 5 %.
    assert thresholds(200, 0.05) == (4, 11)


@pytest.mark.parametrize(("images", "margin"), [(4, 0.05), (20, 0.25), (60, 0.05)])
def test_thresholds_are_those_of_decide(images: int, margin: float) -> None:
    quiet, loud = thresholds(images, margin)
    for broken in {0, quiet - 1, quiet, loud - 1, loud} & set(range(images + 1)):
        attacks = [AttackResult("bpda", "adaptive", broken=tuple(range(broken))), AttackResult("placebo", "placebo")]
        verdict = decide([True] * images, attacks, (), margin=margin, confidence=CONFIDENCE).verdict
        assert (verdict is VERDICTS[NOT_MASKED]) == (broken < quiet)
        assert (verdict is VERDICTS[MASKED]) == (broken >= loud)


def test_the_exact_tests_need_fewer_images() -> None:
    for gap, most in ((0.1, 95), (0.2, 50)):
        old, new = (images_for_power(gap, 0.02, rule(16)) for rule in (by_old_rule, by_new_rule))
        assert new <= most < 0.67 * old


@pytest.mark.parametrize(("images", "margin", "gain"), [(200, 0.05, 0.2), (1000, 0.02, 0.6)])
def test_what_the_placebo_breaks_too_is_no_obstacle(images: int, margin: float, gain: float) -> None:
    old, new = not_masked_chances(images, margin, 0.02)
    assert new > old + gain
    assert not_masked_chances(images, margin, 0.0) == pytest.approx((1, 1))


# the procedure


class Drawn:
    """Stands in for an evaluation: attacks break what one drawn audit says, at the costs of its population."""

    def __init__(
        self, population: Population, clean: Sequence[bool], attacks: Sequence[AttackResult], stages: Sequence[int]
    ) -> None:
        self.population, self.right, self.stages = population, clean, stages
        self.broken = {attack.name: set(attack.broken) for attack in attacks}
        self.due = [max(population.costs) * budget for budget in population.placebo_budgets()]
        self.spent: dict[str, int] = defaultdict(int)
        self.images = self.labels = torch.zeros(0)
        self.deadline = None

    def clean(self) -> tuple[list[bool], dict[int, Prediction]]:
        return list(self.right), {}

    def run_each(
        self, attacks: Sequence[PlannedAttack], given: Collection[int], stream_name: str
    ) -> Generator[AttackResult, None, None]:
        yield from (self.run(attack, given, stream_name) for attack in attacks)

    def run(self, attack: PlannedAttack, given: Collection[int], stream_name: str) -> AttackResult:
        broken, passes = self.broken.get(attack.name, set()), 1
        if attack.kind == "adaptive":
            passes = self.population.costs[ADAPTIVE.index(attack.name)]
        if attack.kind == "placebo":
            passes, batch = (
                cast(Any, attack.run).keywords["restarts"] * self.population.restart,
                stream_name.split(" after")[0],
            )
            self.spent[batch] += passes
            reached = sum(due <= self.spent[batch] + 1e-9 for due in self.due)
            broken = {index for index, stage in enumerate(self.stages) if stage < reached}
        found = tuple(sorted(broken & set(given)))
        return replace(empty_result(attack), attacked=tuple(given), broken=found, passes=passes)


@pytest.mark.longer
def test_simulated_audits_end_as_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuditRun, "_probe", lambda run: [])
    monkeypatch.setattr(AuditRun, "_searches_again", lambda run, analysis: False)
    population = Population(0.6, 0.04, 0.2, gap=0.15, finders="parts", **UNEQUAL)
    images, audits, margin = 100, 150, 0.1
    seen, generator = patterns(population), np.random.default_rng(3)
    plan = plan_analyses(images, margin, CONFIDENCE)
    sizes = np.diff([0, *(analysis.images for analysis in plan)])
    batches = [draw(population, int(size), audits, generator) for size in sizes]
    defense = masked(KillGradient)
    surface = AttackSurface(
        defense=Defense(defense), stream=RandomStream(0, CPU), classes=4, randomized=False, attacked=defense,
        approximations={"0": None},
    )  # fmt: skip
    verdicts, analyses, ends = (
        [0] * len(VERDICTS),
        [0] * len(ADAPTIVE),
        dict.fromkeys((analysis.images for analysis in plan), 0),
    )
    for drawn in zip(*batches, strict=True):
        clean: list[bool] = []
        everything: dict[str, set[int]] = defaultdict(set)
        for batch in drawn:
            right, attacks = results(seen, batch, 3, 3)
            for attack in attacks:
                everything[attack.name] |= {len(clean) + index for index in attack.broken}
            clean += right
        whole = [AttackResult(name, "adaptive", broken=tuple(broken)) for name, broken in everything.items()]
        stages = np.concatenate([np.repeat(seen.stage, batch) for batch in drawn]).tolist()
        scorer = cast(Scorer, Drawn(population, clean, whole, stages))
        run = AuditRun(
            ready=Prepared(surface, scorer, ()), budget=TINY, margin=margin, confidence=CONFIDENCE, exhaustive=False,
            probes=(), progress=ignore, attacks_checked=True,
        )  # fmt: skip
        run.schedule.planned = [
            each for each in run.schedule.planned if each.kind == "gradient" or each.name in ADAPTIVE
        ]
        audit = run.until_decided()
        assert audit is not None
        ends[audit.total] += 1
        verdicts[VERDICTS.index(audit.verdict)] += 1
        start = audit.total - dict(zip((each.images for each in plan), sizes, strict=True))[audit.total]
        last = [
            any(index >= start for index in attack.attacked) for attack in audit.attacks if attack.kind == "adaptive"
        ]
        analyses[sum(last) - 1] += 1
    tally = simulate(population, images, audits, audit_rule(margin), seed=3, margin=margin)
    assert (tally.in_turn, tally.analyses, tally.sizes) == (verdicts, analyses, ends)
    assert min(sum(analyses[:3]), analyses[3]) > 20, "some audits have to stop early, and some not"
    assert min(ends.values()) > 0


@pytest.mark.longer
@pytest.mark.parametrize("finders", FINDERS)
@pytest.mark.parametrize(("images", "effect", "gap"), [(20, 0.1, 0.5), (60, 0.02, 0.2), (200, 0.08, 0.1), (500, 0, 0)])
def test_the_rules_in_bulk_are_those_of_decide(images: int, effect: float, gap: float, finders: Any) -> None:
    population = Population(0.8, effect, 0.2, gap=gap, finders=finders, **CI)
    assert disagreements(population, images, 0.05, audits=200, seed=0, each=4) == []


@pytest.mark.longer
def test_a_disagreement_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audits.calibration.simulation.audit_rule", lambda margin: by_estimate)
    for only_last in (False, True):
        wrong = disagreements(Population(0.8, 0.1), 100, 0.05, audits=20, seed=0, only_last=only_last)
        assert "INCONCLUSIVE by decide" in " ".join(wrong)


def test_tests_in_bulk_are_those_of_the_package() -> None:
    ours, theirs = (side.reshape(-1) for side in np.mgrid[:16, :16])
    kept = ours + theirs <= 15
    ours, theirs = ours[kept], theirs[kept]
    analysis = InterimAnalysis(15)
    found, level = Evidence(analysis, 1, True, ours, theirs, theirs), 1 - analysis.upper_level(CONFIDENCE)
    pairs = list(zip(ours.tolist(), theirs.tolist(), strict=True))
    assert found.excluded(0.3).tolist() == [below_p(*pair, 15, 0.3) <= level for pair in pairs]
    assert found.established(0.1).tolist() == [above_p(*pair, 15, 0.1) <= level for pair in pairs]


def test_the_same_seed_gives_the_same_audits() -> None:
    population = Population(0.5, 0.1, gap=0.2)
    assert simulate(population, 50, 200, audit_rule(0.1)) == simulate(population, 50, 200, audit_rule(0.1))
    assert simulate(population, 50, 200, audit_rule(0.1)) != simulate(population, 50, 200, audit_rule(0.1), seed=1)


# repeated audits


@pytest.mark.longer
@pytest.mark.parametrize("images", ["new", "more"])
@pytest.mark.parametrize(
    ("population", "wanted", "margin"),
    [
        (Population(0.9, 0.1), MASKED, 0.001),
        (Population(0.6, 0.02, gap=0.05, finders="parts", **CI), NOT_MASKED, 0.05),
    ],
    ids=["MASKED", "NOT_MASKED"],
)
def test_attempts_together_have_the_error_of_one(
    images: Any, population: Population, wanted: int, margin: float
) -> None:
    found = repeat(population, (200, 300, 450, 675, 1000), wanted, margin, 4000, 0, images=images)
    assert found.counted[0] == found.uncounted[0] > 0
    assert found.counted == sorted(found.counted)
    assert not exceeds(found.counted[-1], found.users, 0.01)
    # Negative control: five audits with the whole error each are wrong more often than one may be.
    assert exceeds(found.uncounted[-1], found.users, 0.01)


def test_a_series_goes_on_after_any_other_verdict() -> None:
    # Nothing breaks, so every audit is NOT_MASKED, and the verdict that a user wants never comes.
    found = repeat(Population(0.5, 0.0), (50, 60), MASKED, 0.25, 100, 0, images="new")
    assert (found.counted, found.uncounted) == ([0, 0], [0, 0])
    found = repeat(Population(0.5, 0.0), (50, 60), NOT_MASKED, 0.25, 100, 0, images="more")
    assert (found.counted, found.uncounted) == ([100, 100], [100, 100])
