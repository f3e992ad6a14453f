"""How long the steps on the images at hand still take. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pytest_gradmask.auditing.events import AttackEnded, AttackStarted, Message, Step

#: Names in `Clock.earlier` and `Clock.current` that no step has.
FORWARD, AUDIT = "one forward", "one image of an audit"
_FROM_CACHE = 0.01  # seconds: what took less was found in the cache, and says nothing about the step
_CHECKED = 8  # images of the attack check
#: From this share of the survivors on, what adaptive attacks have broken is expected to decide the audit.
_DECISIVE = 0.25


@dataclass(slots=True)
class Clock:
    """Estimates the time left, from the plan that events carry.

    The first attack says how long a forward takes; the plan says how many the others need, and which images they get.
    Rules that name more cases were no better on recorded audits.

    Attributes:
        total: images of the audit.
        margin: of the verdict, a share of images. With too few of them, ``NOT_MASKED`` is out of reach.
        confidence: of the verdict.
        earlier: of steps in earlier audits, seconds for each planned forward of an image, by name.
        current: the same of this audit.
    """

    total: int = 0
    margin: float = 0.25
    confidence: float = 0.99
    earlier: Mapping[str, float] = field(default_factory=dict)
    current: dict[str, float] = field(default_factory=dict)
    _running: AttackStarted | Message | None = None
    _since: float = 0.0
    _started: float | None = None
    _forwards: float = 0.0
    _seconds: float = 0.0
    _seen: int = 0
    _correct: int = 0  # of the images so far, those that are classified correctly
    _faced: float = 0.0  # forwards of a placebo with as many passes as adaptive attacks have had on this batch
    _complete: bool = True  # whether no result came from the cache

    def begin(self, event: AttackStarted | Message, now: float) -> None:
        """A step begins, at this time in seconds. It ends the one before."""
        self.end(now)
        self._started = now if self._started is None else self._started
        self._running, self._since = event, now
        if isinstance(event, AttackStarted) and event.seen != self._seen:  # all that are correct get the first attack
            self._seen, self._faced = event.seen, 0.0
            self._correct += event.images

    def attack_ended(self, event: AttackEnded, now: float) -> None:
        """An attack has ended: so many forwards have taken as long as it ran. A backward takes as long as two."""
        forwards, took = event.forwards + 2 * event.backwards, now - self._since
        self._complete &= not forwards or took > _FROM_CACHE
        if event.step.kind == "adaptive":  # it may ask another model, such as the backbone alone
            self._faced += 1.5 * (event.forwards + event.backwards) / max(event.images, 1)
        elif forwards and took > _FROM_CACHE:
            self._forwards, self._seconds = self._forwards + forwards, self._seconds + took
            self.current[FORWARD] = self._seconds / self._forwards
        self.end(now)

    def end(self, now: float) -> None:
        """Nothing runs any more, or something else."""
        event, self._running, took = self._running, None, now - self._since
        step = None if event is None else event.step
        if event is not None and step is not None and step.cost and event.images and took > _FROM_CACHE:
            self.current[step.attack] = took / _planned(step.cost, event.images)

    def close(self, now: float) -> None:
        """The audit has ended."""
        self.end(now)
        if self._started is not None and self._forwards and self._complete and self.total:
            self.current[AUDIT] = (now - self._started) / self.total

    def left(self, now: float) -> float | None:
        """Seconds until the images at hand are decided; None if unknown."""
        event = self._running
        if event is None or self._started is None:
            return None
        if event.step is None:  # before the first attack, an earlier audit says how long this one takes
            if self._forwards or AUDIT not in self.earlier:
                return None
            return max(0.0, self.earlier[AUDIT] * self.total - (now - self._started))
        rest = self._seconds_of(event.step, event.step.cost, event.images)
        if rest is None:
            return None
        return max(0.0, rest - (now - self._since)) + (self._after(event) if isinstance(event, AttackStarted) else 0.0)

    def _after(self, event: AttackStarted) -> float:
        """Seconds of all that follows the attack that runs."""
        every = self._sum((step, self._cost(step, event), self._images(step, event)) for step in event.later)
        if self._faced or not _of_adaptive(event) or not any(step.deferred for step in event.later):
            return every
        # Nobody knows yet whether the first adaptive attack breaks so much that only a placebo and the deferred attacks
        # follow. The estimate is between the two ends, as far from either, by a factor.
        after_masked = (step for step in event.later if step.deferred or step.kind == "placebo")
        return math.sqrt(every * self._sum((step, step.cost, event.images) for step in after_masked))

    def _sum(self, steps: Iterable[tuple[Step, float, int]]) -> float:
        return sum(self._seconds_of(*step) or 0.0 for step in steps)

    def _cost(self, step: Step, event: AttackStarted) -> float:
        """Forwards for an image in a later step. The placebo gets what an image faces in all adaptive attacks."""
        if step.kind != "placebo":
            return step.cost
        return max(step.cost, self._faced + _of_adaptive(event))

    def _images(self, step: Step, event: AttackStarted) -> int:
        """How many images a later step is expected to get."""
        if step.kind != "check":
            return event.disputed if step.deferred else event.images
        # It is left out where its failure could not change the verdict, as where attacks leave little.
        decisive = event.disputed >= _DECISIVE * max(event.images, event.broken, 1)
        reachable = (1 - self.margin) ** self._correct <= 1 - self.confidence
        much = event.images + event.broken > self.margin * self._correct
        return min(_CHECKED, self._correct) if reachable and much and not decisive else 0

    def _seconds_of(self, step: Step, cost: float, images: int) -> float | None:
        rate = self._rate(step.attack)
        return None if rate is None else rate * _planned(cost, images)

    def _rate(self, name: str) -> float | None:
        """Expected seconds for each planned forward of an image."""
        if name in self.current and name != FORWARD:
            return self.current[name]
        forward = self.current.get(FORWARD, self.earlier.get(FORWARD))
        if forward is None or name not in self.earlier or FORWARD not in self.earlier:
            return forward
        return forward * self.earlier[name] / self.earlier[FORWARD]


def _of_adaptive(event: AttackStarted) -> float:
    """Forwards for an image in the adaptive attacks that run or follow."""
    return sum(step.cost for step in (event.step, *event.later) if step.kind == "adaptive")


def _planned(cost: float, images: int) -> float:
    """Forwards that a step takes, one more than it has images: a batch of one takes nearly as long as one of two."""
    return cost * (images + 1) if images else 0.0


def in_words(seconds: float) -> str:
    """A time rounded to the precision of an estimate: ``<10 s``, ``~40 s``, ``~3 min``."""
    if seconds < 10:
        return "<10 s"
    if seconds < 90:
        return f"~{round(seconds, -1):.0f} s"
    return f"~{seconds / 60:.0f} min" if seconds < 5400 else f"~{seconds / 3600:.1f} h"
