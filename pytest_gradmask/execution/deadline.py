"""Deadlines: until when the attacks of an audit may run."""

from __future__ import annotations

import time
from dataclasses import dataclass

#: Share of an audit's time for the attacks that come before the placebo. Without a placebo there are no bounds.
_BEFORE_PLACEBO = 0.75
#: Note on an attack that was interrupted.
INTERRUPTED = "the deadline was over"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an audit has to end.

    Times are seconds since the epoch, the only clock that workers on other machines share.

    Attributes:
        attacks: end of the attacks that come before the placebo.
        last: end of the placebo, and of what runs after it.
    """

    attacks: float
    last: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        now = time.time()
        return cls(now + _BEFORE_PLACEBO * seconds, now + seconds)

    @property
    def over(self) -> bool:
        """Whether no further attack may begin, the placebo apart."""
        return time.time() > self.attacks
