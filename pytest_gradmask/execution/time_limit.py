"""The time at which an audit has to end, also if a defense swallows what a signal raises in it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END: ContextVar[float] = ContextVar("end", default=math.inf)


class TimeIsUp(BaseException):
    """Not an `Exception`: an attack that raises one counts as failed, and the audit would go on."""


@contextmanager
def queries_end_after(seconds: float) -> Iterator[None]:
    """Inside, `check_time` raises once these seconds are over."""
    token = _END.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _END.reset(token)


def check_time() -> None:
    """To be called before each query.

    Raises:
        TimeIsUp: the time is over.
    """
    if time.monotonic() > _END.get():
        raise TimeIsUp
