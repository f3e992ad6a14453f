"""A scorer that follows a script, and schedules of attacks on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

from torch import nn

from pytest_gradmask.auditing.events import Event, ignore
from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.auditing.schedule import AttackSchedule
from pytest_gradmask.auditing.scoring import Scorer, empty_result
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.defense import Defense
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.results import AttackResult, Prediction
from tests.toys import CPU, TINY, KillGradient, masked

CLEAN = [True] * 9 + [False]
GRADIENT = ["apgd-ce", "apgd-t", "fab-t"]
#: Enough to see in what order they run; others are left out.
ADAPTIVE = ["bpda", "transfer-backbone", "square", "zero-order"]
#: Passes of one restart of the placebo.
ONE = 2 * (TINY.apgd_steps + 1)


Decided = Callable[[Sequence[AttackResult]], bool]


class Script:
    """Stands in for a scorer: attacks break what the script says, and cost what it says."""

    def __init__(self, broken: dict[str, set[int]], passes: dict[str, int] | None = None) -> None:
        self.broken, self.passes = broken, passes or {}
        self.given: list[tuple[str, set[int]]] = []
        self.stream_names: list[tuple[str, str]] = []
        self.restarts: list[int] = []
        self.means: dict[str, int] = {}  # passes for each image, if less than what an unbroken one faced
        self.failing: set[str] = set()
        self.images: int | None = None  # all of them classified correctly

    def clean(self) -> tuple[list[bool], dict[int, Prediction]]:
        return list(CLEAN) if self.images is None else [True] * self.images, {}

    def run_each(
        self, attacks: Sequence[PlannedAttack], given: Collection[int], stream_name: str
    ) -> Generator[AttackResult, None, None]:
        for attack in attacks:
            yield self.run(attack, given, stream_name)

    def run(self, attack: PlannedAttack, given: Collection[int], stream_name: str) -> AttackResult:
        if attack.skip:
            return replace(empty_result(attack), status="skipped", note=attack.skip)
        self.given.append((attack.name, set(given)))
        self.stream_names.append((attack.name, stream_name))
        if attack.name in self.failing:
            return replace(empty_result(attack), attacked=tuple(given), status="failed", note="no such thing")
        cost = self.passes.get(attack.name, 10)
        if attack.kind == "placebo":
            restarts = cast(Any, attack.run).keywords["restarts"]
            self.restarts.append(restarts)
            cost = restarts * ONE
        broken = tuple(sorted(self.broken.get(attack.name, set()) & set(given)))
        forwards = self.means.get(attack.name, cost) * len(given)
        return replace(
            empty_result(attack), attacked=tuple(sorted(given)), broken=broken, forwards=forwards, passes=cost
        )


def schedule(
    script: Script,
    model: nn.Module | None = None,
    *,
    quick: bool = False,
    randomized: bool = False,
    events: list[Event] | None = None,
) -> AttackSchedule:
    model = model or masked(KillGradient)
    surface = AttackSurface(
        defense=Defense(model), stream=RandomStream(0, CPU), classes=4, randomized=randomized, attacked=model
    )
    if isinstance(model[0], KillGradient):  # type: ignore[index]
        surface = replace(surface, approximations={"0": None})
    progress = ignore if events is None else events.append
    own = AttackSchedule(cast(Scorer, script), surface, TINY, quick=quick, progress=progress)
    own.planned = [planned for planned in own.planned if planned.kind == "gradient" or planned.name in ADAPTIVE]
    return own


def attack(schedule: AttackSchedule, decided: Decided | None = None) -> None:
    """Attack the newest batch; end as audits do, once the results with a matched placebo decide."""
    with closing(schedule.attack_batch()) as attacks:
        for _ in attacks:
            if decided is not None and decided(schedule.results()):
                schedule.match_placebo()
                if decided(schedule.results()):
                    break


def turn(
    script: Script,
    model: nn.Module | None = None,
    decided: Decided | None = None,
    events: list[Event] | None = None,
) -> list[AttackResult]:
    """All images in one batch, the placebo with its whole budget."""
    own = schedule(script, model, events=events)
    own.admit(len(CLEAN))
    attack(own, decided)
    own.match_placebo()
    return own.results()


def found(results: Sequence[AttackResult], name: str) -> AttackResult:
    return next(result for result in results if result.name == name)
