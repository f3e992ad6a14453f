"""What an audit says before each attack: text, with what it takes to tell how long is left. No torch."""

from __future__ import annotations

from collections.abc import Sequence


class Step(str):
    """A message that an attack is about to run.

    Attributes:
        attack: its name.
        images: how many it gets.
        seen: how many the audit has looked at by then, these included.
        later: names of the attacks that may follow on these images, in order.
    """

    attack: str
    images: int
    seen: int
    later: tuple[str, ...]

    def __new__(cls, attack: str, images: int, seen: int, later: Sequence[str]) -> Step:
        """Put the numbers into words, and keep them."""
        step = super().__new__(cls, f"{attack} on {images} of {seen} images")
        step.attack, step.images, step.seen, step.later = attack, images, seen, tuple(later)
        return step
