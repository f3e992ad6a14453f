"""What an audit reports while it runs: events that a progress function gets. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pytest_gradmask.verdict.results import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the plan: an attack, or the attack check.

    Attributes:
        attack: its name.
        kind: the family of an attack.
        cost: about how many forwards an image takes that nothing breaks. A backward counts as two. 0 if unknown.
        queries: whether it follows no gradient. It then gets only what no other adaptive attack has broken.
        deferred: whether it gets only the images that one side alone has broken.
    """

    attack: str
    kind: Kind | Literal["check"]
    cost: float = 0.0
    queries: bool = False
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A step that is no attack, in words.

    Attributes:
        text: the words.
        step: the step of the plan, if it is one.
        images: how many it gets.
    """

    text: str
    step: Step | None = None
    images: int = 0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackStarted:
    """An attack is about to run.

    Attributes:
        step: the attack.
        images: how many it gets.
        seen: how many images the audit has admitted by then, these included.
        later: steps that may follow on these images, in order.
        broken: how many of these images adaptive attacks have broken so far.
        disputed: how many of these images either they or the placebo have broken so far, and not both.
    """

    step: Step
    images: int
    seen: int
    later: tuple[Step, ...] = ()
    broken: int = 0
    disputed: int = 0

    @property
    def attack(self) -> str:
        """Its name."""
        return self.step.attack

    def __str__(self) -> str:
        return f"{self.attack} on {self.images} of {self.seen} images"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackEnded:
    """An attack has ended, or its result was found in the cache.

    Attributes:
        step: the attack.
        images: how many it got.
        broken: how many of them it has broken.
        forwards, backwards: how often it asked for one image.
    """

    step: Step
    images: int
    broken: int
    forwards: int
    backwards: int

    def __str__(self) -> str:
        return f"{self.step.attack} broke {self.broken} of {self.images} images"


Event = Message | AttackStarted | AttackEnded
#: Is called with each event. `str` puts any of them into words.
Progress = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A progress function that shows nothing."""
