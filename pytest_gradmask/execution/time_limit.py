"""The time at which an audit has to end, also if a defense swallows what a signal raises in it."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from contextvars import ContextVar

from pytest_gradmask.execution.context import holding

_END: ContextVar[float] = ContextVar("end", default=math.inf)


class TimeIsUp(BaseException):
    """Not an `Exception`: an attack that raises one counts as failed, and the audit would go on."""


def queries_end_after(seconds: float) -> AbstractContextManager[None]:
    """Inside, `check_time` raises once these seconds are over."""
    return holding(_END, time.monotonic() + seconds)


def check_time() -> None:
    """To be called before each query.

    Raises:
        TimeIsUp: the time is over.
    """
    if time.monotonic() > _END.get():
        raise TimeIsUp
