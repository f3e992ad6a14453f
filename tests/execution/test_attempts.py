"""Counting the audits of a defense: what is another attempt, what is not, and that no audit is lost by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from pytest_gradmask import Defense, InputError, ThreatModel, Verdict
from pytest_gradmask.auditing.budgets import get_budget
from pytest_gradmask.execution.attempts import Attempt, take_attempt
from pytest_gradmask.verdict.interim import plan_analyses
from tests.execution.processes import at_once
from tests.toys import IMAGES, TINY, KillGradient, audited, linear, masked


def never(outputs: Tensor) -> Tensor:
    """Rejects nothing."""
    return outputs[:, 0] > 1e9


#: What another audit of the same question may change: each is one more chance of a wrong verdict.
ANOTHER: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "images": {"images": IMAGES[:20]},
    "budget": {"budget": replace(TINY, apgd_steps=6)},
    "exhaustive": {"exhaustive": True},
    "what the attacker knows": {"defense": Defense(linear(), bypass=())},
    "name": {"defense": Defense(linear(), name="a new name")},
}
#: Questions of their own.
OTHER: dict[str, dict[str, Any]] = {
    "defense": {"defense": linear(seed=1)},
    "layers": {"defense": masked(KillGradient)},
    "reject option": {"defense": Defense(linear(), rejects=never)},
    "threat model": {"threat": ThreatModel(0.11)},
    "margin": {"margin": 0.2},
    "confidence": {"confidence": 0.95},
    "test": {"test": "test_it.py::test_other"},
}


def attempts(cache: Path, *changes: Mapping[str, Any]) -> list[int]:
    """The numbers of audits that follow each other, each a change of the same one."""
    return [audited(**{"defense": linear(), "cache": cache, **change}).earlier + 1 for change in changes]


def test_the_same_audit_is_no_new_attempt(tmp_path: Path) -> None:
    assert attempts(tmp_path, {}, {}, {"seed": 1}, {}, {"seed": 1}) == [1, 1, 2, 1, 2]


@pytest.mark.parametrize("change", ANOTHER.values(), ids=ANOTHER)
def test_another_audit_of_a_defense_is_the_next_attempt(change: dict[str, Any], tmp_path: Path) -> None:
    assert attempts(tmp_path, {}, change, change, {"seed": 7}) == [1, 2, 2, 3]


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_another_question_has_attempts_of_its_own(change: dict[str, Any], tmp_path: Path) -> None:
    assert attempts(tmp_path, {}, change, {**change, "seed": 1}) == [1, 1, 2]


def test_argument_and_count_are_apart(tmp_path: Path) -> None:
    audits = [audited(linear(), cache=tmp_path, seed=seed, attempt=attempt) for seed, attempt in ((0, 3), (1, 1))]
    assert [(audit.attempt, audit.earlier) for audit in audits] == [(3, 0), (1, 1)]


def test_without_a_cache_only_the_argument_counts() -> None:
    assert (audited(linear()).attempt, audited(linear(), seed=1).attempt, audited(linear(), attempt=4).attempt) == (
        1,
        1,
        4,
    )


def test_a_later_attempt_has_less_error() -> None:
    first, second = (audited(linear(), seed=1, attempt=attempt) for attempt in (1, 2))
    assert (first.verdict, second.verdict) == (Verdict.NOT_MASKED, Verdict.INCONCLUSIVE)
    assert first.gap is not None
    assert second.gap is not None
    assert first.gap.high < first.margin < second.gap.high
    last = plan_analyses(len(IMAGES), 0.25, 0.99, 2)[-1]
    assert second.gap.high_level == last.upper_level(0.99) > 0.999


def test_what_the_cache_counts_changes_no_verdict(tmp_path: Path) -> None:
    alone = audited(linear(), seed=1)
    first, second = (audited(linear(), seed=seed, cache=tmp_path) for seed in (0, 1))
    assert (first.earlier, second.earlier) == (0, 1)
    assert (second.verdict, second.gap, second.attempt) == (alone.verdict, alone.gap, 1)


def test_an_exhaustive_audit_has_less_error_too() -> None:
    gap = audited(linear(), exhaustive=True, attempt=2).gap
    assert gap is not None
    assert (gap.low_level, gap.high_level) == pytest.approx((0.999925, 0.999925))


def test_what_has_not_ended_is_no_attempt(tmp_path: Path) -> None:
    def interrupt(event: object) -> None:
        if str(event).startswith("square"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempts(tmp_path, {"progress": interrupt, "defense": masked(KillGradient), "exhaustive": True})
    assert attempts(tmp_path, {"defense": masked(KillGradient)}) == [1]


def test_what_has_compared_nothing_is_no_attempt(tmp_path: Path) -> None:
    wrong = (linear()(IMAGES).argmax(1) + 1) % 4
    nothing = audited(linear(), labels=wrong, cache=tmp_path)
    assert (nothing.gap, nothing.attempt, nothing.next_attempt) == (None, 1, 1)
    assert attempts(tmp_path, {}) == [1]


def test_an_interruption_keeps_earlier_attempts(tmp_path: Path) -> None:
    """An interruption keeps the attempt of an audit that ended before."""
    Attempt(1).release()
    take_attempt(tmp_path, "question", "audit")
    take_attempt(tmp_path, "question", "audit").release()
    assert take_attempt(tmp_path, "question", "other").number == 2


def test_a_damaged_file_still_counts(tmp_path: Path) -> None:
    first = take_attempt(tmp_path, "question", "audit")
    assert first.file is not None
    first.file.write_bytes(b"\xff")
    (first.file.parent / "notes.attempt").touch()
    assert take_attempt(tmp_path, "question", "audit").number == 2


@pytest.mark.parametrize("in_the_way", ["attempts", "attempts/qu/question/1.attempt/folder"])
def test_no_audit_is_lost_where_nothing_can_be_counted(in_the_way: str, tmp_path: Path) -> None:
    file = tmp_path / in_the_way
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.warns(UserWarning, match="cannot count the audits of a defense"):
        assert take_attempt(tmp_path, "question", "audit") == Attempt(1)


def test_a_defense_without_fingerprint_is_not_counted(tmp_path: Path) -> None:
    model: nn.Module = linear()
    model.file = iter([])  # type: ignore[assignment]
    assert attempts(tmp_path, *({"defense": model, "seed": seed} for seed in (0, 1))) == [1, 1]


@pytest.mark.parametrize("attempt", [0, -1, 1.0, True, "2", None])
def test_an_attempt_is_a_whole_number_from_one(attempt: Any) -> None:
    with pytest.raises(InputError, match=r"attempt=.*: must be an integer of at least 1"):
        audited(linear(), attempt=attempt)


def test_each_budget_can_be_continued() -> None:
    # As many images again are enough for a second attempt if nothing is broken.
    for name in ("smoke", "ci", "full"):
        budget = get_budget(name)
        for attempt in (1, 2, 3):
            error = 1 - plan_analyses(2 * budget.samples, budget.margin, 0.99, attempt)[-1].upper_level(0.99)
            assert (1 - budget.margin) ** (2 * budget.samples) < error


TAKER = """
import sys, time
from pathlib import Path
from pytest_gradmask.execution.attempts import take_attempt

folder, name, started = Path(sys.argv[1]), sys.argv[2], time.monotonic()
(folder / name).touch()
while not (folder / "go").exists():
    assert time.monotonic() < started + 60
print(*(take_attempt(folder / "cache", "question", f"{name} {turn}").number for turn in range(50)))
"""


def test_no_two_processes_take_one_number(tmp_path: Path) -> None:
    numbers = [int(number) for _, printed, _ in at_once(TAKER, tmp_path) for number in printed.split()]
    assert sorted(numbers) == [*range(1, 151)]
