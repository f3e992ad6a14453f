"""Which attack gets which images, what the placebo gets, and when attacks are spared."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from torch import nn

from pytest_gradmask.auditing.events import Step
from pytest_gradmask.auditing.plan import AttackSurface, PlannedAttack
from pytest_gradmask.auditing.schedule import AttackSchedule, Certain
from pytest_gradmask.auditing.scoring import Scorer
from pytest_gradmask.defense import Defense
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.results import AttackResult, Prediction
from tests.toys import CPU, TINY, KillGradient, linear, masked

CLEAN = [True] * 9 + [False]
GRADIENT = ["apgd-ce", "apgd-t", "fab-t"]
ADAPTIVE = ["bpda", "transfer-backbone", "square", "zero-order"]


class Script:
    """Stands in for an evaluation: attacks break what the script says, and cost what it says."""

    def __init__(self, broken: dict[str, set[int]], passes: dict[str, int] | None = None) -> None:
        self.broken, self.passes = broken, passes or {}
        self.given: list[tuple[str, set[int]]] = []
        self.salts: list[tuple[str, str]] = []
        self.restarts: list[int] = []
        self.failing: set[str] = set()

    def clean(self, indices: Sequence[int]) -> tuple[list[bool], dict[int, Prediction]]:
        return [CLEAN[index] for index in indices], {}

    def run_each(
        self, attacks: Sequence[PlannedAttack], given: Collection[int], stream_name: str
    ) -> Generator[AttackResult, None, None]:
        for attack in attacks:
            yield self.run(attack, given, stream_name)

    def run(self, attack: PlannedAttack, given: Collection[int], stream_name: str) -> AttackResult:
        if attack.skip:
            return AttackResult(attack.name, attack.kind, status="skipped", note=attack.skip)
        self.given.append((attack.name, set(given)))
        self.salts.append((attack.name, stream_name))
        if attack.name in self.failing:
            return AttackResult(attack.name, attack.kind, tuple(given), status="failed", note="no such thing")
        cost = self.passes.get(attack.name, 10)
        if attack.kind == "placebo":
            restarts = cast(Any, attack.run).keywords["restarts"]
            self.restarts.append(restarts)
            cost = restarts * 2 * (TINY.apgd_steps + 1)
        broken = tuple(sorted(self.broken.get(attack.name, set()) & set(given)))
        return AttackResult(attack.name, attack.kind, tuple(sorted(given)), broken, forwards=cost * len(given))


def schedule(
    script: Script, model: nn.Module | None = None, quick: bool = False, lines: list[str] | None = None
) -> AttackSchedule:
    model = model or masked(KillGradient)
    surface = AttackSurface(Defense(model), RandomStream(0, CPU), 4, randomized=False, attacked=model)
    if isinstance(model[0], KillGradient):  # type: ignore[index]
        surface = replace(surface, approximations={"0": None})
    progress = (lambda line: None) if lines is None else lines.append
    return AttackSchedule(cast(Scorer, script), surface, TINY, quick, progress)


def turn(
    script: Script,
    model: nn.Module | None = None,
    certain: Certain | None = None,
    lines: list[str] | None = None,
) -> list[AttackResult]:
    """All images in one batch, the placebo with its whole budget."""
    own = schedule(script, model, lines=lines)
    own.admit(len(CLEAN))
    own.attack(certain)
    own.match_placebo()
    return own.results()


def found(results: Sequence[AttackResult], name: str) -> AttackResult:
    return next(result for result in results if result.name == name)


def test_gradient_attacks_get_what_the_ones_before_left_and_all_others_what_all_left() -> None:
    script = Script({"apgd-ce": {0, 1}, "apgd-t": {2}, "bpda": {3, 4}, "square": {3}, "placebo": {5}})
    lines: list[str] = []
    results = turn(script, lines=lines)
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]
    left = {3, 4, 5, 6, 7, 8}
    expected = [("apgd-ce", set(range(9))), ("apgd-t", set(range(2, 9))), ("fab-t", left)]
    assert script.given == [*expected, *((name, left) for name in [*ADAPTIVE, "placebo"])]
    assert lines[:2] == ["apgd-ce on 9 of 10 images", "apgd-t on 7 of 10 images"]


def test_a_quick_attack_goes_first_where_it_is_wanted() -> None:
    script = Script({"pgd": {0, 1}})
    own = schedule(script, quick=True)
    own.admit(10)
    own.attack(None)
    assert script.given[:2] == [("pgd", set(range(9))), ("apgd-ce", set(range(2, 9)))]
    assert [result.name for result in own.results()][:2] == ["pgd", "apgd-ce"]


@pytest.mark.parametrize("passes", [1, 100, 110, 1000])
def test_the_placebo_gets_at_least_the_passes_of_all_adaptive_attacks_together(passes: int) -> None:
    script = Script({}, {"square": passes})
    results = turn(script)
    one = 2 * (TINY.apgd_steps + 1)
    together = passes + 3 * 10
    assert script.restarts == [math.ceil(together / one)]
    assert results[-1].kind == "placebo"
    assert together <= results[-1].forwards / 9 < together + one


def first_placebos_do_not_convince(results: Sequence[AttackResult]) -> bool:
    """Certain of every placebo that has not run, and of none that has."""
    return results[-1].forwards == 0


def always_hopeful() -> Certain:
    """Certain of what there is before the placebo goes on, and no longer once it has."""
    seen: list[int] = []

    def certain(results: Sequence[AttackResult]) -> bool:
        hopeful = not seen or results[-1].forwards == seen[-1]
        seen.append(results[-1].forwards)
        return hopeful

    return certain


def test_a_placebo_that_falls_behind_goes_on_with_other_starts() -> None:
    costs = {"bpda": 100, "transfer-backbone": 200, "square": 300, "zero-order": 400}
    script = Script({"placebo": {1}}, costs)
    results = turn(script, certain=always_hopeful())
    salts = [stream_name for name, stream_name in script.salts if name == "placebo"]
    assert len(salts) == 4
    assert len(set(salts)) == 4, "with the same salt it repeats the same random starts"
    assert [given for name, given in script.given if name == "placebo"] == [set(range(9)), *[set(range(9)) - {1}] * 3]
    placebo = results[-1]
    assert (placebo.name, placebo.kind, placebo.broken) == ("placebo", "placebo", (1,))
    assert placebo.forwards / 9 == pytest.approx(1000, rel=0.15)
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]


def test_a_placebo_that_has_broken_images_counts_what_it_spent_on_the_others() -> None:
    # Two restarts reach the budget of all attacks, so a third would be wasted.
    one = 2 * (TINY.apgd_steps + 1)
    costs = {"bpda": one, "transfer-backbone": one, "square": 0, "zero-order": 0}
    script = Script({"placebo": {0, 1, 2}}, costs)
    turn(script, certain=always_hopeful())
    assert script.restarts == [1, 1]


def test_a_placebo_starts_with_one_restart_and_goes_on_to_its_whole_budget() -> None:
    script = Script({}, {"square": 1000})
    own = schedule(script)
    own.admit(10)
    own.attack(None)
    own.start_placebo()
    own.start_placebo()
    assert script.restarts == [1]
    own.match_placebo()
    one = 2 * (TINY.apgd_steps + 1)
    assert script.restarts == [1, math.ceil((1030 - one) / one)]


def test_a_failed_placebo_is_not_tried_again() -> None:
    script = Script({})
    script.failing = {"placebo"}
    results = turn(script)
    assert results[-1].status == "failed"
    assert [name for name, _ in script.given].count("placebo") == 1


def test_once_the_verdict_is_certain_the_rest_is_spared() -> None:
    script = Script({"bpda": set(range(9))})
    results = turn(script, certain=lambda results: any(result.broken for result in results))
    assert [name for name, _ in script.given] == [*GRADIENT, "bpda", "placebo"]
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]
    assert [found(results, name).status for name in ADAPTIVE] == [
        "done",
        "skipped-early",
        "skipped-early",
        "skipped-early",
    ]
    assert found(results, "square").autoattack


def test_what_cannot_run_is_skipped_and_not_spared() -> None:
    script = Script({"square": {1}})
    results = turn(script, linear(), certain=lambda results: any(result.broken for result in results))
    assert [found(results, name).status for name in ADAPTIVE] == ["skipped", "skipped", "done", "skipped-early"]


def test_without_a_judge_everything_runs() -> None:
    results = turn(Script({"bpda": set(range(9))}))
    assert {result.status for result in results} == {"done"}


def test_nothing_is_spared_while_the_verdict_is_open() -> None:
    seen: list[int] = []

    def judge(results: Sequence[AttackResult]) -> bool:
        seen.append(len(results))
        return False

    script = Script({})
    results = turn(script, certain=judge)
    assert {result.status for result in results} == {"done"}
    assert seen == [8, 8, 8, 8]  # after each adaptive attack, of all planned attacks and the placebo
    assert sum(name == "placebo" for name, _ in script.given) == 1


def test_batches_are_attacked_one_after_the_other_and_told_as_one() -> None:
    script = Script({"apgd-ce": {0, 4}, "bpda": {1, 5, 6}, "placebo": {2, 7}})
    lines: list[str] = []
    own = schedule(script, lines=lines)
    for images in (4, 10):
        own.admit(images)
        own.attack(None)
        own.match_placebo()
    assert own.clean == CLEAN
    results = own.results()
    assert [given for name, given in script.given if name == "bpda"] == [{1, 2, 3}, {5, 6, 7, 8}]
    assert found(results, "bpda").attacked == (1, 2, 3, 5, 6, 7, 8)
    assert [found(results, name).broken for name in ("apgd-ce", "bpda", "placebo")] == [(0, 4), (1, 5, 6), (2, 7)]
    assert found(results, "bpda").forwards == 70
    assert {result.status for result in results} == {"done"}
    assert lines[0] == "apgd-ce on 4 of 4 images"
    assert "apgd-ce on 5 of 10 images" in lines
    salts = [stream_name for name, stream_name in script.salts if name == "bpda"]
    assert len(set(salts)) == 2, "batches draw other random numbers"


def test_an_attack_that_is_spared_in_a_later_batch_says_so_and_counts() -> None:
    script = Script({"square": {0}, "bpda": {5, 6, 7, 8}})
    own = schedule(script)
    own.admit(4)
    own.attack(lambda results: False)
    own.admit(10)
    own.attack(lambda results: 5 in found(results, "bpda").broken)
    square = found(own.results(), "square")
    assert (square.status, square.broken) == ("done", (0,))
    assert "certain" in square.note


def test_each_batch_of_the_placebo_has_what_adaptive_attacks_had_there() -> None:
    one = 2 * (TINY.apgd_steps + 1)
    script = Script({}, dict.fromkeys(ADAPTIVE, one))
    own = schedule(script)
    own.admit(4)
    own.attack(None)
    own.start_placebo()
    assert script.restarts == [1]
    own.admit(10)
    own.attack(lambda results: True)  # spared after the first adaptive attack, for which all placebos had to match
    assert script.restarts == [1, 3, 1]


@pytest.mark.parametrize("first", [True, False])
def test_an_attack_that_failed_once_has_failed(first: bool) -> None:
    script = Script({})
    own = schedule(script)
    for images, failing in ((4, first), (10, not first)):
        script.failing = {"square"} if failing else set()
        own.admit(images)
        own.attack(None)
    square = found(own.results(), "square")
    assert (square.status, square.note) == ("failed", "no such thing")


def test_each_step_says_which_attacks_may_follow() -> None:
    lines: list[str] = []
    turn(Script({"apgd-ce": {0, 1}}), lines=lines)
    steps = [line for line in lines if isinstance(line, Step)]
    assert [step.attack for step in steps] == [*GRADIENT, *ADAPTIVE, "placebo"]
    assert [step.later for step in steps] == [
        (*GRADIENT, *ADAPTIVE, "placebo")[number:] for number in range(1, len(steps) + 1)
    ]
    assert (steps[1].images, steps[1].seen) == (7, 10)
