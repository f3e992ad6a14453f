"""How long an audit still takes."""

from __future__ import annotations

import pytest

from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.auditing.events import AttackStarted
from pytest_gradmask.plugin.estimate import Clock, Pace, costs_of, in_words


def event(attack: str, images: int, seen: int, *later: str) -> AttackStarted:
    return AttackStarted(attack=attack, images=images, seen=seen, later=later)


def test_no_estimate_of_what_is_unknown() -> None:
    clock = Clock()
    assert clock.left(0) is None
    clock.begin(event("pgd", 10, 10, "bpda"), 0)
    assert clock.left(0) is None


def test_the_next_batch_is_as_fast_as_the_last() -> None:
    clock = Clock()
    clock.begin(event("pgd", 10, 10, "bpda"), 0)
    clock.begin(event("bpda", 5, 10), 1)  # pgd took 0.1 s an image
    clock.begin(event("pgd", 20, 30, "bpda"), 3)
    assert clock.left(3) == pytest.approx(20 * 0.1 + 10 * 0.4)  # half of the images are left for bpda
    assert clock.left(4) == pytest.approx(1 + 4)
    clock.begin(event("bpda", 12, 30), 5)
    assert clock.left(5) == pytest.approx(12 * 0.4)
    assert clock.left(99) == 0


@pytest.mark.parametrize("left", [2, 90])
def test_a_later_attack_is_expected_on_the_images_that_are_left_for_it(left: int) -> None:
    """Once each later attack was multiplied by the images of the first one: wrong by 50 where it got 2 of 100."""
    clock = Clock()
    clock.begin(event("pgd", 100, 100, "bpda", "square"), 0)
    clock.begin(event("bpda", left, 100, "square"), 10)
    clock.begin(event("square", left, 100), 10 + left)
    clock.end(10 + 3 * left)
    clock.begin(event("pgd", 100, 200, "bpda", "square"), 1000)
    assert clock.left(1000) == pytest.approx(10 + 3 * left)


def test_rates_of_other_audits_are_scaled() -> None:
    clock = Clock(earlier={"pgd": Pace(1, 1), "bpda": Pace(4, 0.5)})
    clock.begin(event("pgd", 10, 10, "bpda"), 0)
    assert clock.left(0) == pytest.approx(10 + 5 * 4)
    clock.begin(event("bpda", 10, 10), 1)  # ten times as fast
    assert clock.left(1) == pytest.approx(10 * 0.4)


def test_costs_of_the_budget_stand_in_for_what_has_not_run() -> None:
    clock = Clock(costs={"pgd": 10, "bpda": 20})
    clock.begin(event("pgd", 4, 4, "bpda"), 0)
    assert clock.left(0) is None  # in no unit of time
    clock.begin(event("bpda", 3, 4), 8)
    assert clock.left(8) == pytest.approx(3 * 4)


def test_what_the_cache_answers_changes_no_rate() -> None:
    clock = Clock()
    clock.begin(event("pgd", 10, 10), 0)
    clock.end(5)
    clock.begin(event("pgd", 10, 20), 6)
    clock.end(6.001)
    clock.begin(event("pgd", 0, 30), 7)
    clock.end(20)
    clock.end(90)
    assert clock.current == {"pgd": Pace(0.5, 0)}


def test_estimates_are_within_a_factor_of_two() -> None:
    """A masked defense after an undefended one: other speed, other shares."""
    names = ("pgd", "apgd-ce", "bpda", "square", "placebo")
    seconds = {"pgd": 0.1, "apgd-ce": 0.4, "bpda": 0.5, "square": 1.0, "placebo": 2.0}
    paces: dict[str, Pace] = {}
    for speed, given in ((1, (20, 2, 1, 1, 1)), (30, (20, 19, 19, 19, 19))):
        clock, now = Clock(earlier=dict(paces)), 0.0
        for batch in (1, 2):
            took = [speed * seconds[name] * count for name, count in zip(names, given, strict=True)]
            for number, (name, count) in enumerate(zip(names, given, strict=True)):
                clock.begin(event(name, count, 20 * batch, *names[number + 1 :]), now)
                if speed == 30 and (batch, number) >= (1, 1):
                    left = clock.left(now)
                    assert left is not None
                    assert 0.5 < left / sum(took[number:]) < 2
                now += took[number]
            clock.end(now)
        paces = clock.current


def test_every_budget_has_costs() -> None:
    for budget in BUDGETS.values():
        assert all(cost > 0 for cost in costs_of(budget).values())


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "<10 s"), (44, "~40 s"), (100, "~2 min"), (3600, "~60 min"), (9000, "~2.5 h")]
)
def test_times_are_rounded(seconds: float, expected: str) -> None:
    assert in_words(seconds) == expected
