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
    clock.begin(event("pgd", 10, 10, "fab-t"), 0)
    clock.begin(event("fab-t", 5, 10), 1)  # pgd took 0.1 s an image
    clock.begin(event("pgd", 20, 30, "fab-t"), 3)
    assert clock.left(3) == pytest.approx(20 * 0.1 + 10 * 0.4)  # half of the images are left for fab-t
    assert clock.left(4) == pytest.approx(1 + 4)
    clock.begin(event("fab-t", 12, 30), 5)
    assert clock.left(5) == pytest.approx(12 * 0.4)
    assert clock.left(99) == 0


@pytest.mark.parametrize("left", [2, 90])
def test_a_later_attack_is_expected_on_the_images_that_are_left_for_it(left: int) -> None:
    """Once each later attack was multiplied by the images of the first one: wrong by 50 where it got 2 of 100."""
    clock = Clock()
    clock.begin(event("pgd", 100, 100, "apgd-ce", "fab-t"), 0)
    clock.begin(event("apgd-ce", left, 100, "fab-t"), 10)
    clock.begin(event("fab-t", left, 100), 10 + left)
    clock.end(10 + 3 * left)
    clock.begin(event("pgd", 100, 200, "apgd-ce", "fab-t"), 1000)
    assert clock.left(1000) == pytest.approx(10 + 3 * left)


def test_rates_of_other_audits_are_scaled() -> None:
    clock = Clock(earlier={"pgd": Pace(1, 1), "apgd-ce": Pace(4, 0.5)})
    clock.begin(event("pgd", 10, 10, "apgd-ce"), 0)
    assert clock.left(0) == pytest.approx(10 + 5 * 4)
    clock.begin(event("apgd-ce", 10, 10), 1)  # ten times as fast
    assert clock.left(1) == pytest.approx(10 * 0.4)


def test_costs_of_the_budget_stand_in_for_what_has_not_run() -> None:
    clock = Clock(costs={"pgd": 10, "apgd-ce": 20, "fab-t": 30})
    clock.begin(event("pgd", 10, 10, "apgd-ce"), 0)
    assert clock.left(0) is None  # in no unit of time
    clock.begin(event("apgd-ce", 3, 10), 20)
    assert clock.left(20) == pytest.approx(3 * 4)
    clock.begin(event("fab-t", 3, 10), 99)  # so few images take as long as many, and say nothing about one
    assert clock.left(99) == pytest.approx(3 * 6)


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


def test_the_placebo_takes_as_long_as_the_adaptive_attacks_that_have_run() -> None:
    clock = Clock(costs={"pgd": 1, "bpda": 2, "square": 7, "placebo": 100})
    clock.begin(event("pgd", 10, 10, "bpda", "square", "placebo"), 0)
    clock.begin(event("bpda", 10, 10, "square", "placebo"), 1)
    few, many = 2 + 2, 2 + 7 + (2 + 7)  # decided by bpda, or by nothing
    assert clock.left(1) == pytest.approx((few * many) ** 0.5)
    clock.begin(event("placebo", 10, 10), 3)
    assert clock.left(3) == pytest.approx(2)
    assert clock.left(4) == pytest.approx(1)


@pytest.mark.parametrize("decided", [True, False], ids=["by the first adaptive attack", "by nothing"])
def test_estimates_are_within_a_factor_of_two_for_most_of_the_run(decided: bool) -> None:
    """An audit after one of a defense that is 30 times as fast, and that gradient attacks break."""
    names = ("pgd", "apgd-ce", "apgd-t", "bpda", "square", "placebo")
    seconds = {"pgd": 0.1, "apgd-ce": 0.4, "apgd-t": 1.2, "bpda": 0.5, "square": 0.7}
    first, right, total = Clock(), 0.0, 0.0
    for number, name in enumerate(names):
        first.begin(event(name, 20 if number == 0 else 1, 20, *names[number + 1 :]), 3 * number)
    first.end(20)
    clock, now = Clock(earlier=first.current, costs=seconds), 0.0
    ran = [name for name in names if not (decided and name == "square")]
    took = {name: 30 * 20 * seconds.get(name, 0) for name in ran}
    took["placebo"] = took["bpda"] + took.get("square", 0)
    for name in ran:
        clock.begin(event(name, 20, 20, *names[names.index(name) + 1 :]), now)
        for step in range(10):
            left = clock.left(now + step * took[name] / 10)
            rest = sum(took[other] for other in ran[ran.index(name) :]) - step * took[name] / 10
            total += took[name]
            right += took[name] * (left is not None and 0.5 <= left / rest <= 2)
        now += took[name]
    assert right / total > 0.6


def test_every_budget_has_costs() -> None:
    for budget in BUDGETS.values():
        assert all(cost > 0 for cost in costs_of(budget).values())


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "<10 s"), (44, "~40 s"), (100, "~2 min"), (3600, "~60 min"), (9000, "~2.5 h")]
)
def test_times_are_rounded(seconds: float, expected: str) -> None:
    assert in_words(seconds) == expected
