"""Which guided attacks go on to the next batch."""

from __future__ import annotations

from typing import cast

import pytest

from pytest_gradmask.auditing.events import ignore
from pytest_gradmask.auditing.joining import OUTDONE
from pytest_gradmask.auditing.schedule import AttackSchedule
from pytest_gradmask.auditing.scoring import Scorer
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.defense import Attack, Defense
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.results import AttackResult
from tests.auditing.schedule_toys import Script, attack, found
from tests.toys import CPU, TINY, KillGradient, masked

pytestmark = pytest.mark.usefixtures("no_operations_found")


def of_three_guided(script: Script, *, quick: bool, by_user: bool = False, first: int = 10) -> list[AttackResult]:
    """Two batches of a defense with three guided attacks: ``bpda``, ``transfer-backbone`` and ``inner-logits``."""
    script.images = first + 10
    model = masked(KillGradient)
    own_attacks = [Attack(lambda model, images, labels: images, "own", kind="adaptive")] if by_user else []
    surface = AttackSurface(
        defense=Defense(model, attacks=own_attacks), stream=RandomStream(0, CPU), classes=4, randomized=False,
        attacked=model, approximations={"0": None}, inner="1",
    )  # fmt: skip
    own = AttackSchedule(cast(Scorer, script), surface, TINY, quick=quick, progress=ignore)
    for images in (first, first + 10):
        own.admit(images)
        attack(own)
    return own.results()


def batches_of(script: Script, name: str) -> int:
    return sum(attack == name for attack, _ in script.given)


def test_the_best_pair_goes_on() -> None:
    # The second best breaks only what the best breaks, too.
    script = Script({"bpda": {0, 1}, "transfer-backbone": {0, 1, 2, 3}, "inner-logits": {4, 15}})
    results = of_three_guided(script, quick=True)
    assert [batches_of(script, name) for name in ("bpda", "transfer-backbone", "inner-logits")] == [1, 2, 2]
    outdone = found(results, "bpda")
    assert (outdone.status, outdone.note, outdone.broken) == ("done", OUTDONE, (0, 1))
    assert len(outdone.attacked) == 10
    assert found(results, "inner-logits").broken == (4, 15)
    assert batches_of(script, "square") == batches_of(script, "zero-order") == 2


def test_of_equals_the_first_go_on() -> None:
    script = Script({})
    of_three_guided(script, quick=True)
    assert [batches_of(script, name) for name in ("bpda", "transfer-backbone", "inner-logits")] == [2, 2, 1]


@pytest.mark.parametrize(("quick", "first"), [(False, 10), (True, 7)], ids=["exhaustive", "few images"])
def test_all_go_on(quick: bool, first: int) -> None:
    script = Script({"bpda": {0}})
    of_three_guided(script, quick=quick, first=first)
    assert [batches_of(script, name) for name in ("bpda", "transfer-backbone", "inner-logits")] == [2, 2, 2]


def test_own_and_failed_attacks_go_on() -> None:
    script = Script({"bpda": {0, 1}, "inner-logits": {4}})
    script.failing = {"transfer-backbone"}
    of_three_guided(script, quick=True, by_user=True)
    assert [batches_of(script, name) for name in ("own", "bpda", "transfer-backbone", "inner-logits")] == [2] * 4
