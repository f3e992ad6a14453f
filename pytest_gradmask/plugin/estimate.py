"""How long the attacks on the images at hand still take. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_gradmask.auditing.budgets import Budget
    from pytest_gradmask.auditing.events import AttackStarted

GRADIENT_ATTACKS = ("pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "apgd-eot")
PLACEBO = "placebo"
_FEW = 5  # images: fewer take as long as these, and say little about the time an image takes
_FROM_CACHE = 0.01  # seconds: what took less was found in the cache, and says nothing about the attack


class Pace(NamedTuple):
    """What an attack took: seconds an image, and the share of the images at hand that it got."""

    rate: float
    share: float


@dataclass(slots=True)
class Clock:
    """Estimates the time left of an audit.

    An attack that has run in this audit takes as long an image as it did. Of the others, earlier audits or the budget
    say how much longer they take than those that have run.

    Attributes:
        costs: of attacks on one image, by name, in any unit; what no earlier audit says comes from here.
        earlier: of attacks in earlier audits, by name.
        current: of attacks in this audit, by name.
    """

    costs: Mapping[str, float] = field(default_factory=dict)
    earlier: Mapping[str, Pace] = field(default_factory=dict)
    current: dict[str, Pace] = field(default_factory=dict)
    _running: tuple[AttackStarted, float] | None = None
    _admitted: int = 0  # images of the batch that is attacked
    _seen: int = 0
    _adaptive: float = 0.0  # seconds that adaptive attacks have taken on this batch

    def begin(self, event: AttackStarted, now: float) -> None:
        """Start to time an attack, at this time in seconds."""
        self.end(now)
        if event.seen != self._seen:
            self._admitted, self._seen, self._adaptive = event.seen - self._seen, event.seen, 0.0
        self._running = event, now

    def end(self, now: float) -> None:
        """Stop timing the attack that was running, if any."""
        if self._running is None:
            return
        (event, started), self._running = self._running, None
        if event.attack not in (*GRADIENT_ATTACKS, PLACEBO):
            self._adaptive += now - started
        share = event.images / max(self._admitted, 1)
        enough = event.images >= _FEW or (event.images > 0 and event.attack not in self.costs)
        if enough and now - started > _FROM_CACHE:
            self.current[event.attack] = Pace((now - started) / event.images, share)
        elif event.attack in self.current:
            self.current[event.attack] = self.current[event.attack]._replace(share=share)

    def left(self, now: float) -> float | None:
        """Seconds until the images at hand are decided; None if unknown.

        An audit may stop after its first adaptive attack, or run all of them. The estimate is between the two, as far
        from either, by a factor.
        """
        if self._running is None:
            return None
        event, started = self._running
        if self._rate(event.attack) is None:
            return None

        def seconds(name: str) -> float:
            return (self._rate(name) or 0.0) * event.images * self._fall(event.attack, name)

        gradient = sum(seconds(name) for name in event.later if name in GRADIENT_ATTACKS)
        adaptive = [seconds(name) for name in event.later if name not in (*GRADIENT_ATTACKS, PLACEBO)]
        spent, elapsed = self._adaptive, now - started
        if event.attack == PLACEBO:
            return max(0.0, (spent or seconds(PLACEBO)) - elapsed)
        running = max(elapsed, seconds(event.attack))
        if event.attack not in GRADIENT_ATTACKS:
            spent += running
        # The placebo gets as many passes as all adaptive attacks that have run.
        first, every = (0.0 if spent else sum(adaptive[:1])), sum(adaptive)
        placebos = PLACEBO in event.later
        few, many = (running - elapsed + gradient + some + placebos * (spent + some) for some in (first, every))
        return math.sqrt(few * many)

    def _rate(self, name: str) -> float | None:
        """Expected seconds an image of an attack."""
        if name in self.current:
            return self.current[name].rate
        for known in ({name: pace.rate for name, pace in self.earlier.items()}, self.costs):
            shared = self.current.keys() & known.keys()
            expected = sum(known[other] for other in shared)
            if name in known and expected:
                return known[name] * sum(self.current[other].rate for other in shared) / expected
        return self.earlier[name].rate if name in self.earlier else None

    def _fall(self, first: str, then: str) -> float:
        """Of the images that one attack got, the share that is left for a later one."""
        for paces in (self.current, self.earlier):
            if first in paces and then in paces and paces[first].share:
                return min(1.0, paces[then].share / paces[first].share)
        return 1.0


def costs_of(budget: Budget) -> dict[str, float]:
    """About how long each attack takes on an image that nothing breaks, in steps of PGD: a forward and a backward."""
    forward = 1 / 3  # a backward takes twice as long
    adaptive = {
        "bpda-operations": 1.5 * budget.bpda_steps,  # watches each operation
        "bpda": budget.bpda_steps,
        "transfer-backbone": budget.bpda_steps,
        "square": forward * budget.square_queries,
        "zero-order": 2 * forward * budget.zero_order_steps * budget.zero_order_pairs,
    }
    return {
        "pgd": 10,
        "apgd-ce": budget.apgd_steps,
        "apgd-t": budget.apgd_steps * budget.targets,
        "fab-t": 2 * budget.fab_steps * budget.targets,
        **adaptive,
        PLACEBO: sum(adaptive.values()),
    }


def in_words(seconds: float) -> str:
    """A time rounded to the precision of an estimate: ``<10 s``, ``~40 s``, ``~3 min``."""
    if seconds < 10:
        return "<10 s"
    if seconds < 90:
        return f"~{round(seconds, -1):.0f} s"
    return f"~{seconds / 60:.0f} min" if seconds < 5400 else f"~{seconds / 3600:.1f} h"
