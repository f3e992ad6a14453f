"""How long an audit still takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.auditing.events import AttackEnded, AttackStarted, Message, Step
from pytest_gradmask.plugin import estimate
from pytest_gradmask.plugin.estimate import AUDIT, FORWARD, Clock, in_words

PGD = Step(attack="pgd", kind="gradient", cost=30)
BPDA = Step(attack="bpda", kind="adaptive", cost=60)
SQUARE = Step(attack="square", kind="adaptive", cost=100, queries=True)
PLACEBO = Step(attack="placebo", kind="placebo", cost=60)
APGD = Step(attack="apgd-ce", kind="gradient", cost=60, deferred=True)
CHECK = Step(attack="attack check", kind="check", cost=680)
PLAN = (PGD, BPDA, SQUARE, PLACEBO, APGD, CHECK)
#: Audits of models that come with the package, as their events came: ``tests/plugin/timelines.json``.
TIMELINES = json.loads((Path(__file__).parent / "timelines.json").read_text())


def started(step: Step, images: int, *, seen: int = 20, **more: int) -> AttackStarted:
    return AttackStarted(step=step, images=images, seen=seen, later=PLAN[PLAN.index(step) + 1 :], **more)


def ended(step: Step, images: int, passes: int, broken: int = 0) -> AttackEnded:
    """With as many forwards as backwards; a pair of them takes as long as three forwards."""
    return AttackEnded(step=step, images=images, broken=broken, forwards=passes, backwards=passes)


def after_pgd(clock: Clock, images: int = 20) -> Clock:
    """One second for each forward of an image. The first attack has ended after ten steps on each image."""
    clock.begin(started(PGD, images, seen=images), 0)
    clock.attack_ended(ended(PGD, images, 10 * images), 30 * images)
    return clock


def test_no_estimate_of_what_is_unknown() -> None:
    clock = Clock(total=20)
    assert clock.left(0) is None
    clock.begin(Message("preflight"), 0)
    assert clock.left(0) is None
    clock.begin(started(PGD, 20), 1)
    assert clock.left(1) is None


def test_the_first_attack_says_how_long_a_forward_takes() -> None:
    clock = after_pgd(Clock(total=20))
    assert clock.current[FORWARD] == 1
    clock.begin(started(PLACEBO, 20), 600)
    assert clock.left(600) == 60 * 21 + 680 * 9  # the placebo, and the check on eight images
    assert clock.left(660) == 60 * 21 + 680 * 9 - 60
    assert clock.left(10**6) == 680 * 9


def test_until_an_adaptive_attack_has_run_both_ends_are_possible() -> None:
    clock = after_pgd(Clock(total=20))
    clock.begin(started(BPDA, 20), 600)
    placebo = (60 + 100) * 21  # as much as an image faces in both adaptive attacks
    every, masked = 100 * 21 + placebo + 680 * 9, 60 * 21 + 60 * 21
    assert clock.left(600) == pytest.approx(60 * 21 + (every * masked) ** 0.5)
    clock.attack_ended(ended(BPDA, 20, 400), 1800)
    clock.begin(started(SQUARE, 20), 1800)  # it has not decided
    assert clock.left(1800) == 100 * 21 + placebo + 680 * 9


def test_deferred_attacks_after_a_decisive_one() -> None:
    """After a decisive attack, the deferred ones run on what it has broken."""
    clock = after_pgd(Clock(total=20))
    clock.begin(started(BPDA, 20), 600)
    clock.attack_ended(ended(BPDA, 20, 40, broken=20), 700)
    clock.begin(started(PLACEBO, 20, broken=20, disputed=20), 700)
    assert clock.left(700) == 60 * 21 + 60 * 21  # and no check
    clock.begin(started(APGD, 20, broken=20, disputed=20), 2000)
    assert clock.left(2000) == 60 * 21


def test_no_attack_check_of_few_images() -> None:
    """Few images cannot exclude masking: no attack check."""
    clock = after_pgd(Clock(total=10, margin=0.25), images=10)
    clock.begin(started(PLACEBO, 10, seen=10), 1200)
    assert clock.left(1200) == 60 * 11
    enough = after_pgd(Clock(total=10, margin=0.5), images=10)
    enough.begin(started(PLACEBO, 10, seen=10), 1200)
    assert enough.left(1200) == 60 * 11 + 680 * 9


def test_the_placebo_follows_adaptive_attacks_beyond_the_plan() -> None:
    """The placebo gets what adaptive attacks have had, also beyond the plan."""
    clock = after_pgd(Clock(total=20))
    clock.begin(started(BPDA, 20), 600)
    clock.attack_ended(ended(BPDA, 20, 4000), 1800)  # 400 passes an image, which a placebo needs 600 forwards for
    clock.begin(started(SQUARE, 20), 1800)
    assert clock.left(1800) == 100 * 21 + (600 + 100) * 21 + 680 * 9


def test_there_is_no_check_where_attacks_leave_little() -> None:
    clock = after_pgd(Clock(total=20))
    clock.begin(started(PLACEBO, 2), 600)
    assert clock.left(600) == 60 * 3


def test_without_deferred_attacks_all_steps_run() -> None:
    clock = after_pgd(Clock(total=20))
    every = AttackStarted(step=BPDA, images=20, seen=20, later=(PLACEBO, CHECK))
    clock.begin(every, 600)
    assert clock.left(600) == 60 * 21 + 60 * 21 + 680 * 9


def test_the_next_batch_begins_anew() -> None:
    clock = after_pgd(Clock(total=40))
    clock.begin(started(BPDA, 20), 600)
    clock.attack_ended(ended(BPDA, 20, 400), 1800)
    clock.begin(started(PGD, 20, seen=40), 2000)
    clock.attack_ended(ended(PGD, 20, 200), 2600)
    clock.begin(started(BPDA, 20, seen=40), 2600)
    took = 1200 / (60 * 21)  # as in the first batch
    every, masked = 100 * 21 + (60 + 100) * 21 + 680 * 9, 60 * 21 + 60 * 21
    assert clock.left(2600) == pytest.approx(took * 60 * 21 + (every * masked) ** 0.5)


def test_earlier_audits_say_what_a_step_takes() -> None:
    clock = after_pgd(Clock(total=20, earlier={FORWARD: 2, "placebo": 6, AUDIT: 70}))  # a placebo: three times as long
    clock.begin(started(PLACEBO, 2), 600)
    assert clock.left(600) == 3 * 60 * 3


def test_the_first_estimate_is_from_the_last_audit() -> None:
    """Before the first attack, the last audit says how long this one takes."""
    clock = Clock(total=20, earlier={AUDIT: 10})
    clock.begin(Message("preflight"), 5)
    assert clock.left(5) == 200
    assert clock.left(55) == 150
    assert clock.left(999) == 0


def test_the_attack_check_is_timed_by_its_message() -> None:
    clock = after_pgd(Clock(total=20))
    clock.begin(Message("binarization test", CHECK, 8), 600)
    assert clock.left(700) == 680 * 9 - 100
    clock.begin(Message("something else"), 700)
    assert clock.left(700) is None


def test_what_the_cache_answers_changes_no_rate() -> None:
    clock = Clock(total=20)
    clock.begin(started(PGD, 20), 0)
    clock.attack_ended(ended(PGD, 20, 200), 0.001)
    assert FORWARD not in clock.current
    clock.begin(started(PGD, 20), 1)
    clock.attack_ended(ended(PGD, 20, 200), 601)
    clock.close(700)
    assert clock.current[FORWARD] == 1
    assert AUDIT not in clock.current  # an audit that came from the cache in part says nothing about a whole one


def test_what_is_kept_of_an_audit() -> None:
    clock = after_pgd(Clock(total=20))
    clock.close(800)
    assert clock.current == {FORWARD: 1, "pgd": 600 / (30 * 21), AUDIT: 40}


def test_no_attack_is_known_by_its_name() -> None:
    assert not re.search(r"pgd|bpda|square|zero|fab|transfer", Path(estimate.__file__).read_text())


def events(timeline: Mapping[str, Any]) -> Iterator[tuple[float, Message | AttackStarted | AttackEnded]]:
    kinds = {"Message": Message, "AttackStarted": AttackStarted, "AttackEnded": AttackEnded}
    for at, kind, fields in timeline["events"]:
        step = None if fields["step"] is None else Step(**fields["step"])
        later = {"later": tuple(Step(**each) for each in fields["later"])} if "later" in fields else {}
        yield at, kinds[kind](**{**fields, "step": step, **later})


def replayed(timeline: Mapping[str, Any], earlier: Mapping[str, float]) -> tuple[float, Clock]:
    """The share of an audit's time in which the estimate is right, and the clock at its end.

    It is right if it is within a factor of two, or if it says less than ten seconds and that is so.
    """
    margin = BUDGETS[timeline["budget"]].margin
    clock = Clock(total=timeline["total"], margin=margin, earlier=earlier)
    found = list(events(timeline))
    ends = [at for at, _ in found[1:]] + [timeline["end"]]
    right = 0.0
    for (at, event), end in zip(found, ends, strict=True):
        if isinstance(event, AttackEnded):
            clock.attack_ended(event, at)
            continue
        clock.begin(event, at)
        for moment in (at + (end - at) * (number + 0.5) / 20 for number in range(20)):
            left, rest = clock.left(moment), timeline["end"] - moment
            good = left is not None and (rest / 2 <= left <= 2 * rest or max(left, rest) < 10)
            right += good * (end - at) / 20
    clock.close(timeline["end"])
    return right / timeline["end"], clock


@pytest.mark.parametrize("budget", ["smoke", "ci"])
def test_most_estimates_are_within_a_factor_of_two(budget: str) -> None:
    """Estimates are within a factor of two for most of the run."""
    timelines = [each for each in TIMELINES if each["budget"] == budget]
    assert len(timelines) >= 4
    again, other, last = [], [], dict[str, float]()
    for timeline in timelines:
        other.append(replayed(timeline, last)[0])  # after an audit of another defense
        clock = replayed(timeline, {})[1]
        again.append(replayed(timeline, clock.current)[0])
        last = {name: clock.current[name] for name in (FORWARD, AUDIT) if name in clock.current}
    assert sum(again) / len(again) > 0.75
    assert sum(other[1:]) / len(other[1:]) > 0.5


def test_a_wrong_clock_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "left", lambda clock, now: 1000.0)
    assert max(replayed(timeline, {})[0] for timeline in TIMELINES) < 0.5


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, "<10 s"), (44, "~40 s"), (100, "~2 min"), (3600, "~60 min"), (9000, "~2.5 h")]
)
def test_times_are_rounded(seconds: float, expected: str) -> None:
    assert in_words(seconds) == expected
