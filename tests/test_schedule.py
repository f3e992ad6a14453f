"""Which attack gets which images, what the placebo gets, and when attacks are spared."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from torch import nn

from pytest_gradmask.attacks.oracle import RandomStream
from pytest_gradmask.defense import Defense
from pytest_gradmask.plan import PlannedAttack, Target
from pytest_gradmask.results import AttackResult
from pytest_gradmask.schedule import attack_in_turn
from pytest_gradmask.scoring import Evaluation
from tests.toys import CPU, TINY, KillGradient, linear, masked

CLEAN = [True] * 9 + [False]
STANDING = range(9)
GRADIENT = ["apgd-ce", "apgd-t", "fab-t"]
ADAPTIVE = ["bpda", "transfer-backbone", "square", "zero-order"]


class Script:
    """Stands in for an evaluation: attacks break what the script says, and cost what it says."""

    def __init__(self, broken: dict[str, set[int]], passes: dict[str, int] | None = None) -> None:
        self.broken, self.passes = broken, passes or {}
        self.given: list[tuple[str, set[int]]] = []
        self.restarts: list[int] = []
        self.images = CLEAN

    def run(self, attack: PlannedAttack, given: Collection[int]) -> AttackResult:
        if attack.skip:
            return AttackResult(attack.name, attack.kind, status="skipped", note=attack.skip)
        self.given.append((attack.name, set(given)))
        cost = self.passes.get(attack.name, 10)
        if attack.kind == "placebo":
            restarts = cast(Any, attack.run).keywords["restarts"]
            self.restarts.append(restarts)
            cost = restarts * 2 * (TINY.apgd_steps + 1)
        broken = tuple(sorted(self.broken.get(attack.name, set()) & set(given)))
        return AttackResult(attack.name, attack.kind, tuple(sorted(given)), broken, forwards=cost * len(given))


def turn(
    script: Script,
    model: nn.Module | None = None,
    certain: Callable[[Sequence[AttackResult]], bool] | None = None,
    lines: list[str] | None = None,
) -> list[AttackResult]:
    model = model or masked(KillGradient)
    target = Target(Defense(model), RandomStream(0, CPU), 4, randomized=False, attacked=model)
    if isinstance(model[0], KillGradient):  # type: ignore[index]
        target = replace(target, substitutes={"0": None})
    progress = (lambda line: None) if lines is None else lines.append
    return attack_in_turn(cast(Evaluation, script), target, TINY, STANDING, certain, progress)


def test_gradient_attacks_get_what_the_ones_before_left_and_all_others_what_all_left() -> None:
    script = Script({"apgd-ce": {0, 1}, "apgd-t": {2}, "bpda": {3, 4}, "square": {3}, "placebo": {5}})
    lines: list[str] = []
    results = turn(script, lines=lines)
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]
    left = {3, 4, 5, 6, 7, 8}
    expected = [("apgd-ce", set(range(9))), ("apgd-t", set(range(2, 9))), ("fab-t", left)]
    assert script.given == [*expected, *((name, left) for name in [*ADAPTIVE, "placebo"])]
    assert lines[:2] == ["apgd-ce on 9 of 10 images", "apgd-t on 7 of 10 images"]


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


def test_a_placebo_that_falls_behind_goes_on_with_other_starts() -> None:
    costs = {"bpda": 100, "transfer-backbone": 200, "square": 300, "zero-order": 400}
    script = Script({"placebo": {1}}, costs)
    results = turn(script, certain=first_placebos_do_not_convince)
    names = [name for name, _ in script.given if name.startswith("placebo")]
    assert len(names) == 4
    assert len(set(names)) == 4, "the name is the seed: the same name repeats the same random starts"
    assert [given for name, given in script.given if name.startswith("placebo")] == [
        set(range(9)),
        *[set(range(9)) - {1}] * 3,
    ]
    placebo = results[-1]
    assert (placebo.name, placebo.kind, placebo.broken) == ("placebo", "placebo", (1,))
    assert placebo.forwards / 9 == pytest.approx(1000, rel=0.15)
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]


def test_a_placebo_that_has_broken_images_counts_what_it_spent_on_the_others() -> None:
    # Two restarts reach the budget of all attacks, so a third would be wasted.
    one = 2 * (TINY.apgd_steps + 1)
    costs = {"bpda": one, "transfer-backbone": one, "square": 0, "zero-order": 0}
    script = Script({"placebo": {0, 1, 2}}, costs)
    turn(script, certain=first_placebos_do_not_convince)
    assert script.restarts == [1, 1]


def test_once_the_verdict_is_certain_the_rest_is_spared() -> None:
    script = Script({"bpda": set(range(9))})
    results = turn(script, certain=lambda results: any(result.broken for result in results))
    assert [name for name, _ in script.given] == [*GRADIENT, "bpda", "placebo"]
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]
    status = {result.name: result.status for result in results}
    assert [status[name] for name in ADAPTIVE] == ["done", "spared", "spared", "spared"]
    assert next(result for result in results if result.name == "square").autoattack


def test_what_cannot_run_is_skipped_and_not_spared() -> None:
    script = Script({"square": {1}})
    results = turn(script, linear(), certain=lambda results: any(result.broken for result in results))
    status = {result.name: result.status for result in results}
    assert [status[name] for name in ADAPTIVE] == ["skipped", "skipped", "done", "spared"]


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
    assert seen == [8, 8, 8]  # after each adaptive attack but the last, of all planned attacks and the placebo
    assert sum(name.startswith("placebo") for name, _ in script.given) == 1
