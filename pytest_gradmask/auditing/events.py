"""What an audit reports while it runs: events that a progress function gets. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """A step that is no attack, in words."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackStarted:
    """An attack is about to run.

    Attributes:
        attack: its name.
        images: how many it gets.
        seen: how many images the audit has admitted by then, these included.
        later: names of the attacks that may follow on these images, in order.
    """

    attack: str
    images: int
    seen: int
    later: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.attack} on {self.images} of {self.seen} images"


Event = Message | AttackStarted
#: Is called with each event. `str` puts any of them into words.
Progress = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A progress function that shows nothing."""
