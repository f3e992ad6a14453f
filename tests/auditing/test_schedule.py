"""Which attack gets which images, what the placebo gets, and when attacks are skipped early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradmask.auditing.events import AttackEnded, AttackStarted, Event
from pytest_gradmask.auditing.schedule import AttackSchedule
from pytest_gradmask.verdict.results import AttackResult
from pytest_gradmask.verdict.rule import measure_gap
from tests.auditing.schedule_toys import ADAPTIVE, CLEAN, GRADIENT, ONE, Decided, Script, attack, found, schedule, turn
from tests.toys import linear

pytestmark = pytest.mark.usefixtures("no_operations_found")


def test_attacks_get_the_survivors_of_gradient_attacks() -> None:
    script = Script({"apgd-ce": {0, 1}, "apgd-t": {2}, "bpda": {3, 4}, "square": {3}, "placebo": {5}})
    events: list[Event] = []
    results = turn(script, events=events)
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]
    left = {3, 4, 5, 6, 7, 8}
    expected = [("apgd-ce", set(range(9))), ("apgd-t", set(range(2, 9))), ("fab-t", left)]
    assert script.given == [*expected, *((name, left) for name in [*ADAPTIVE, "placebo"])]
    said = ["apgd-ce on 9 of 10 images", "apgd-ce broke 2 of 9 images", "apgd-t on 7 of 10 images"]
    assert [str(event) for event in events[:3]] == said


def verdict_first(script: Script, *, randomized: bool = False, events: list[Event] | None = None) -> AttackSchedule:
    """All that an audit which is not exhaustive runs on one batch of images if it is never decided."""
    own = schedule(script, quick=True, randomized=randomized, events=events)
    own.admit(10)
    attack(own)
    own.match_placebo()
    own.settle_disputed()
    return own


def test_gradient_attacks_wait() -> None:
    """Gradient attacks wait for images that one side alone breaks."""
    script = Script({"pgd": {0}, "bpda": {1, 2, 3}, "placebo": {3, 4}, "apgd-ce": {1, 5}, "apgd-t": {2}})
    events: list[Event] = []
    own = verdict_first(script, events=events)
    left = set(range(1, 9))
    expected = [("pgd", {0, *left}), ("bpda", left), ("transfer-backbone", left)]
    expected += [("square", left - {1, 2, 3}), ("zero-order", left - {1, 2, 3}), ("placebo", left)]
    assert script.given == [*expected, ("apgd-ce", {1, 2, 4}), ("apgd-t", {2, 4}), ("fab-t", {4})]
    assert [result.name for result in own.results()] == ["pgd", *GRADIENT, *ADAPTIVE, "placebo"]
    assert found(own.results(), "apgd-ce").broken == (1,)
    steps = [event for event in events if isinstance(event, AttackStarted)]
    assert [step.attack for step in steps[0].later] == [*ADAPTIVE, "placebo", *GRADIENT, "attack check"]
    assert [(step.broken, step.disputed) for step in steps[2:6]] == [(3, 3)] * 4
    assert (steps[6].attack, steps[6].broken, steps[6].disputed) == ("apgd-ce", 3, 3)  # 1 and 2 of them, and 4 of it
    ended = [event for event in events if isinstance(event, AttackEnded)]
    assert [event.step.attack for event in ended] == [step.attack for step in steps]
    assert str(ended[1]) == "bpda broke 3 of 8 images"
    assert str(steps[3]) == "square on 5 of 10 images"
    own.settle_disputed()
    assert len(script.given) == 9, "nothing is left to be tried"


def test_images_that_need_no_further_gradient_attack() -> None:
    """What neither or both sides break needs no further gradient attack."""
    script = Script({"bpda": {1, 2}, "placebo": {1, 2}, "apgd-ce": {1}})
    own = verdict_first(script)
    assert {name for name, _ in script.given}.isdisjoint(GRADIENT)
    statuses = [found(own.results(), name).status for name in GRADIENT]
    assert statuses == ["skipped-early"] * 3
    own.settle_placebo()
    assert script.given[-3:] == [("apgd-ce", {1, 2}), ("apgd-t", {2}), ("fab-t", {2})]


def test_disputed_later_with_other_random_numbers() -> None:
    script = Script({"bpda": {1}, "square": {2}})
    own = schedule(script, quick=True)
    own.admit(10)
    with closing(own.attack_batch()) as attacks:
        for _ in attacks:
            own.settle_disputed()
    given = [(images, stream_name) for (name, images), (_, stream_name) in zip(
        script.given, script.stream_names, strict=True) if name == "apgd-ce"]  # fmt: skip
    assert [images for images, _ in given] == [{1}, {2}]
    assert len({stream_name for _, stream_name in given}) == 2


def test_a_deferred_attack_that_failed_is_not_tried_again() -> None:
    script = Script({"bpda": {1}, "square": {2}})
    script.failing = {"apgd-t"}
    own = verdict_first(script)
    own.settle_placebo()
    own.settle_disputed()
    assert [name for name, _ in script.given].count("apgd-t") == 1
    assert found(own.results(), "apgd-t").status == "failed"


IMAGES = st.sets(st.integers(0, 8))


@given(st.fixed_dictionaries(dict.fromkeys(["pgd", *GRADIENT, *ADAPTIVE, "placebo"], IMAGES)))
def test_the_gap_is_that_of_all_attacks_on_all_images(broken: dict[str, set[int]]) -> None:
    gaps = []
    # In the other order there is no short attack. What it breaks, the next one is given here.
    whole = {**broken, "apgd-ce": broken["pgd"] | broken["apgd-ce"]}
    for own in (verdict_first(Script(broken)), schedule(Script(whole))):
        if not own.clean:
            own.admit(10)
            attack(own)
            own.match_placebo()
        gaps.append(measure_gap(own.clean, {}, own.results(), 0.99))
    first, second = gaps
    assert first is not None
    assert second is not None
    assert (first.excess, first.placebo_only) == (second.excess, second.placebo_only)


def test_a_short_attack_goes_first_on_a_randomized_defense_too() -> None:
    script = Script({"pgd": {0, 1}})
    verdict_first(script, randomized=True)
    assert script.given[:2] == [("pgd", set(range(9))), ("bpda", set(range(2, 9)))]


@pytest.mark.parametrize("passes", [1, 100, 110, 1000])
def test_the_placebo_gets_all_adaptive_passes(passes: int) -> None:
    script = Script({}, {"square": passes})
    results = turn(script)
    together = passes + 3 * 10
    assert script.restarts == [math.ceil(together / ONE)]
    assert results[-1].kind == "placebo"
    assert together <= results[-1].forwards / 9 < together + ONE


def until_the_placebo() -> Decided:
    """Decided by what there is before the placebo goes on, and no longer once it has."""
    seen: list[int] = []

    def decided(results: Sequence[AttackResult]) -> bool:
        unchanged = not seen or results[-1].forwards == seen[-1]
        seen.append(results[-1].forwards)
        return unchanged

    return decided


def test_a_placebo_continues_with_other_starts() -> None:
    costs = {"bpda": 100, "transfer-backbone": 200, "square": 300, "zero-order": 400}
    script = Script({"placebo": {1}}, costs)
    results = turn(script, decided=until_the_placebo())
    stream_names = [stream_name for name, stream_name in script.stream_names if name == "placebo"]
    assert len(stream_names) == 4
    assert len(set(stream_names)) == 4, "with the same name it repeats the same random starts"
    assert [given for name, given in script.given if name == "placebo"] == [set(range(9)), *[set(range(9)) - {1}] * 3]
    placebo = results[-1]
    assert (placebo.name, placebo.kind, placebo.broken) == ("placebo", "placebo", (1,))
    assert placebo.forwards / 9 == pytest.approx(1000, rel=0.15)
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]


def test_placebo_passes_count_for_survivors() -> None:
    # Two restarts reach the budget of all attacks, so a third would be wasted.
    costs = {"bpda": ONE, "transfer-backbone": ONE, "square": 0, "zero-order": 0}
    script = Script({"placebo": {0, 1, 2}}, costs)
    turn(script, decided=until_the_placebo())
    assert script.restarts == [1, 1]


def test_a_placebo_starts_with_one_restart() -> None:
    script = Script({}, {"square": 1000})
    own = schedule(script)
    own.admit(10)
    attack(own)
    own.start_placebo()
    own.start_placebo()
    assert script.restarts == [1]
    own.match_placebo()
    assert script.restarts == [1, math.ceil((1030 - ONE) / ONE)]


@pytest.mark.parametrize("randomized", [False, True])
def test_a_failed_placebo_is_not_tried_again(randomized: bool) -> None:
    script = Script({})
    script.failing = {"placebo"}
    own = schedule(script, randomized=randomized)
    own.admit(10)
    attack(own)
    own.match_placebo()
    own.match_placebo()
    assert own.results()[-1].status == "failed"
    assert [name for name, _ in script.given].count("placebo") == 1


def test_the_placebo_gets_what_an_unbroken_image_faced() -> None:
    # BPDA leaves 8 of 9 images early, so the mean over all images is less than what the ninth faced.
    script = Script({"bpda": set(range(8))}, {"bpda": 20 * ONE})
    script.means = {"bpda": 3 * ONE}
    results = turn(script)
    assert found(results, "bpda").forwards == 9 * 3 * ONE
    assert script.restarts == [math.ceil((20 * ONE + 30) / ONE)]


def test_a_randomized_placebo_runs_once_for_each_adaptive_attack() -> None:
    # Each run returns one candidate point, and the worst of many looks worse than it is.
    costs = {"bpda": 3 * ONE, "transfer-backbone": ONE, "square": 2 * ONE, "zero-order": 5 * ONE}
    gradient_attacks, placebo_runs = {}, {}
    for randomized in (False, True):
        script = Script({}, costs)
        own = schedule(script, randomized=randomized)
        own.admit(10)
        attack(own)
        own.match_placebo()
        own.match_placebo()
        gradient_attacks[randomized] = [name for name, _ in script.given if name in [*GRADIENT, "apgd-eot"]]
        placebo_runs[randomized] = script.restarts
    assert placebo_runs == {False: [11], True: [3, 1, 2, 5]}
    assert len(gradient_attacks[True]) > len(gradient_attacks[False])


def test_early_placebo_run() -> None:
    script = Script({}, dict.fromkeys(ADAPTIVE, 2 * ONE))
    own = schedule(script, randomized=True)
    own.admit(10)
    attack(own)
    own.start_placebo()
    own.match_placebo()
    assert script.restarts == [1, 2, 2, 2, 1]


def test_placebo_that_broke_everything() -> None:
    script = Script({"placebo": set(range(9))}, dict.fromkeys(ADAPTIVE, 2 * ONE))
    own = schedule(script)
    own.admit(10)
    attack(own)
    own.start_placebo()
    own.match_placebo()
    assert script.restarts == [1]


def test_once_decided_the_rest_is_skipped() -> None:
    script = Script({"bpda": set(range(9))})
    results = turn(script, decided=lambda results: any(result.broken for result in results))
    assert [name for name, _ in script.given] == [*GRADIENT, "bpda", "placebo"]
    assert [result.name for result in results] == [*GRADIENT, *ADAPTIVE, "placebo"]
    assert [found(results, name).status for name in ADAPTIVE] == [
        "done",
        "skipped-early",
        "skipped-early",
        "skipped-early",
    ]
    assert found(results, "square").autoattack


def test_what_cannot_run_is_not_skipped_early() -> None:
    script = Script({"square": {1}})
    results = turn(script, linear(), decided=lambda results: any(result.broken for result in results))
    assert [found(results, name).status for name in ADAPTIVE] == ["skipped", "skipped", "done", "skipped-early"]


def test_undecided_everything_runs() -> None:
    results = turn(Script({"bpda": set(range(9))}))
    assert {result.status for result in results} == {"done"}


def test_nothing_is_skipped_while_undecided() -> None:
    seen: list[int] = []

    def judge(results: Sequence[AttackResult]) -> bool:
        seen.append(len(results))
        return False

    script = Script({})
    results = turn(script, decided=judge)
    assert {result.status for result in results} == {"done"}
    assert seen == [8, 8, 8, 8]  # after each adaptive attack, of all planned attacks and the placebo
    assert sum(name == "placebo" for name, _ in script.given) == 1


def test_batches_are_reported_as_one() -> None:
    script = Script({"apgd-ce": {0, 4}, "bpda": {1, 5, 6}, "placebo": {2, 7}})
    events: list[Event] = []
    own = schedule(script, events=events)
    for images in (4, 10):
        own.admit(images)
        attack(own)
        own.match_placebo()
    assert own.clean == CLEAN
    results = own.results()
    assert [given for name, given in script.given if name == "bpda"] == [{1, 2, 3}, {5, 6, 7, 8}]
    assert found(results, "bpda").attacked == (1, 2, 3, 5, 6, 7, 8)
    assert [found(results, name).broken for name in ("apgd-ce", "bpda", "placebo")] == [(0, 4), (1, 5, 6), (2, 7)]
    assert found(results, "bpda").forwards == 70
    assert {result.status for result in results} == {"done"}
    assert str(events[0]) == "apgd-ce on 4 of 4 images"
    assert "apgd-ce on 5 of 10 images" in [str(event) for event in events]
    stream_names = [stream_name for name, stream_name in script.stream_names if name == "bpda"]
    assert len(set(stream_names)) == 2, "batches draw other random numbers"


def test_an_attack_skipped_in_a_later_batch() -> None:
    script = Script({"square": {0}, "bpda": {5, 6, 7, 8}})
    own = schedule(script)
    own.admit(4)
    attack(own, lambda results: False)
    own.admit(10)
    attack(own, lambda results: 5 in found(results, "bpda").broken)
    square = found(own.results(), "square")
    assert (square.status, square.broken) == ("done", (0,))
    assert "decided" in square.note


def test_each_batch_matches_its_placebo() -> None:
    script = Script({}, dict.fromkeys(ADAPTIVE, ONE))
    own = schedule(script)
    own.admit(4)
    attack(own)
    own.start_placebo()
    assert script.restarts == [1]
    own.admit(10)
    attack(own, lambda results: True)  # ends after the first adaptive attack, for which all placebos had to match
    assert script.restarts == [1, 3, 1]


@pytest.mark.parametrize("first", [True, False])
def test_an_attack_that_failed_once_has_failed(first: bool) -> None:
    script = Script({})
    own = schedule(script)
    for images, failing in ((4, first), (10, not first)):
        script.failing = {"square"} if failing else set()
        own.admit(images)
        attack(own)
    square = found(own.results(), "square")
    assert (square.status, square.note) == ("failed", "no such thing")


def test_each_step_says_which_attacks_may_follow() -> None:
    events: list[Event] = []
    turn(Script({"apgd-ce": {0, 1}}), events=events)
    steps = [event for event in events if isinstance(event, AttackStarted)]
    assert [step.attack for step in steps] == [*GRADIENT, *ADAPTIVE, "placebo"]
    assert [[later.attack for later in step.later] for step in steps] == [
        [*GRADIENT, *ADAPTIVE, "placebo", "attack check"][number:] for number in range(1, len(steps) + 1)
    ]
    assert all(step.step.cost > 0 for step in steps)
    assert (steps[1].images, steps[1].seen) == (7, 10)
