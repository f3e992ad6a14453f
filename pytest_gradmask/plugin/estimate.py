"""How long the steps on the images at hand still take. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pytest_gradmask.auditing.events import AttackEnded, AttackStarted, Message, Step

#: Names in `Clock.earlier` and `Clock.current` that no step has.
FORWARD, AUDIT = "one forward", "one image of an audit"
_FROM_CACHE = 0.01  # seconds: what took less was found in the cache, and says nothing about the step
_CHECKED = 8  # images of the attack check
_EARLY = 0.3  # share of its cost after which an attack that decides an audit has broken its images
#: From this share of the survivors on, what adaptive attacks have broken is expected to decide the audit.
_DECISIVE = 0.25


@dataclass(slots=True)
class Clock:
    """Estimates the time left, from the plan that events carry.

    The first attack says how long a forward takes; the plan says how many the others need. Until the first adaptive
    attack has run, nobody knows whether the audit will end as ``MASKED``, with a placebo and all deferred attacks on
    what it has broken, or whether all adaptive attacks and the attack check will run. The estimate is then between the
    two, as far from either, by a factor.

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
    _adaptive: int = 0  # adaptive attacks that have begun on this batch
    _passes: float = 0.0  # forwards and backwards of an image in those that have ended
    _seen: int = 0
    _correct: int = 0  # of the images so far, those that are classified correctly
    _complete: bool = True  # whether no result came from the cache

    def begin(self, event: AttackStarted | Message, now: float) -> None:
        """A step begins, at this time in seconds. It ends the one before."""
        self.end(now)
        self._started = now if self._started is None else self._started
        self._running, self._since = event, now
        if isinstance(event, AttackStarted) and event.seen != self._seen:  # all that are correct get the first attack
            self._seen, self._adaptive, self._passes = event.seen, 0, 0.0
            self._correct += event.images
        self._adaptive += event.step is not None and event.step.kind == "adaptive"

    def attack_ended(self, event: AttackEnded, now: float) -> None:
        """An attack has ended: so many forwards have taken as long as it ran. A backward takes as long as two."""
        forwards, took = event.forwards + 2 * event.backwards, now - self._since
        if event.step.kind == "adaptive" and event.images:
            self._passes += (event.forwards + event.backwards) / event.images
        self._complete &= not forwards or took > _FROM_CACHE
        # Adaptive attacks may ask another model, such as the backbone alone.
        if forwards and took > _FROM_CACHE and event.step.kind != "adaptive":
            self._forwards, self._seconds = self._forwards + forwards, self._seconds + took
            self.current[FORWARD] = self._seconds / self._forwards
        self.end(now)

    def end(self, now: float) -> None:
        """Nothing runs any more, or something else."""
        event, self._running, took = self._running, None, now - self._since
        step = None if event is None else event.step
        if event is not None and step is not None and step.cost and event.images and took > _FROM_CACHE:
            self.current[step.attack] = took / _planned(step, event.images)

    def close(self, now: float) -> None:
        """The audit has ended."""
        self.end(now)
        if self._started is not None and self._forwards and self._complete and self.total:
            self.current[AUDIT] = (now - self._started) / self.total

    def left(self, now: float) -> float | None:
        """Seconds until the images at hand are decided; None if unknown."""
        event, elapsed = self._running, now - self._since
        if event is None:
            return None
        if isinstance(event, Message):
            return self._left_of_message(event, now)
        rest = self._seconds_of(event.step, event.images)
        if rest is None:
            return None
        return max(0.0, rest - elapsed) + self._after(event)

    def _left_of_message(self, event: Message, now: float) -> float | None:
        if event.step is not None:
            whole = self._seconds_of(event.step, event.images)
            return None if whole is None else max(0.0, whole - (now - self._since))
        if self._forwards or AUDIT not in self.earlier or self._started is None:
            return None
        return max(0.0, self.earlier[AUDIT] * self.total - (now - self._started))

    def _after(self, event: AttackStarted) -> float:
        """Seconds of all that follows the attack that runs."""
        kinds = {"gradient": [], "adaptive": [], "placebo": [], "check": [], "deferred": []}  # type: dict[str, list[Step]]
        for step in event.later:
            kinds["deferred" if step.deferred else step.kind].append(step)
        decisive = event.disputed >= _DECISIVE * max(event.images, event.broken, 1)
        reachable = (1 - self.margin) ** self._correct <= 1 - self.confidence
        # The check is left out where attacks leave so little that their failure could not change the verdict.
        checked = reachable and not decisive and event.images + event.broken > self.margin * self._correct
        check = [(step, min(_CHECKED, self._correct)) for step in kinds["check"] if checked]
        if event.step.deferred:
            return self._sum([*((step, event.images) for step in kinds["deferred"]), *check])
        deferred = [(step, event.disputed) for step in kinds["deferred"]]
        # If the verdict needs it, the placebo gets what all adaptive attacks have had. Otherwise one restart is enough.
        matched = not kinds["deferred"] or decisive or not reachable
        if event.step.kind == "placebo":
            due = [(_matching(event.step, self._passes), event.images)] if matched and not decisive else []
            due = due if due and due[0][0].cost > 2 * event.step.cost else []
            return self._sum([*due, *deferred, *check])
        gradient = [(step, event.images) for step in kinds["gradient"]]
        adaptive = [(step, event.images - event.broken * step.queries) for step in kinds["adaptive"]]
        passes = self._passes + sum(
            step.cost / 1.5 for step in (event.step, *kinds["adaptive"]) if step.kind == "adaptive"
        )
        placebo = [(_matching(step, passes) if matched else step, event.images) for step in kinds["placebo"]]
        every = self._sum([*gradient, *adaptive, *placebo, *deferred, *check])
        if not kinds["deferred"] or self._adaptive > 1 or decisive:
            return every
        first = [] if self._adaptive else adaptive[:1]
        rest = [(step, event.images) for step in (*kinds["placebo"], *kinds["deferred"])]
        return math.sqrt(every * (_EARLY * self._sum(first) + self._sum(rest)))

    def _sum(self, steps: list[tuple[Step, int]]) -> float:
        return sum(self._seconds_of(step, images) or 0.0 for step, images in steps)

    def _seconds_of(self, step: Step, images: int) -> float | None:
        rate = self._rate(step.attack)
        return None if rate is None else rate * _planned(step, images)

    def _rate(self, name: str) -> float | None:
        """Expected seconds for each planned forward of an image."""
        if name in self.current and name != FORWARD:
            return self.current[name]
        forward = self.current.get(FORWARD, self.earlier.get(FORWARD))
        if forward is None or name not in self.earlier or FORWARD not in self.earlier:
            return forward
        return forward * self.earlier[name] / self.earlier[FORWARD]


def _matching(placebo: Step, passes: float) -> Step:
    """A placebo with so many forwards and backwards. A pass of each takes as long as three forwards."""
    return replace(placebo, cost=max(placebo.cost, 1.5 * passes))


def _planned(step: Step, images: int) -> float:
    """Forwards that a step takes, one more than it has images: a batch of one takes nearly as long as one of two."""
    return step.cost * (images + 1) if images else 0.0


def in_words(seconds: float) -> str:
    """A time rounded to the precision of an estimate: ``<10 s``, ``~40 s``, ``~3 min``."""
    if seconds < 10:
        return "<10 s"
    if seconds < 90:
        return f"~{round(seconds, -1):.0f} s"
    return f"~{seconds / 60:.0f} min" if seconds < 5400 else f"~{seconds / 3600:.1f} h"
