"""An end to audits that hang."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pytest_gradmask.errors import AuditTimeoutError, InputError


class _TimeIsUp(BaseException):
    """No `Exception`, or an attack that it interrupts would count as failed, and the audit would go on."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End what runs inside after so many seconds; None for never.

    By a signal, which interrupts Python code, sleep and locks, but no call of C code that never returns.

    Raises:
        AuditTimeoutError: they have passed.
        InputError: this is not the main thread, or the system has no such signal.
    """
    if seconds is None:
        yield
        return
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        raise InputError(f"timeout={seconds:g}: needs the main thread of a Unix system; leave --gradmask-timeout out")

    def ring(_: int, __: FrameType | None) -> None:
        raise _TimeIsUp

    handler = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)  # of somebody else, as pytest-timeout
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeIsUp as error:
        raise AuditTimeoutError(
            f"the audit has taken more than {seconds:g} s (--gradmask-timeout). Attacks that had ended are in the "
            "cache, so run again to go on after them, with more time; or see in the traceback where the defense hangs"
        ) from error
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)
