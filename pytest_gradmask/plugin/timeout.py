"""``--gradmask-timeout``: end audits that hang."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pytest_gradmask.errors import AuditTimeoutError, InputError


class _TimeIsUp(BaseException):
    """Not an `Exception`: an attack that raises one counts as failed, and the audit would go on."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End what runs inside the context after this many seconds; None for no limit.

    A signal does that. It interrupts Python code, `time.sleep` and waiting for locks. It cannot interrupt a call of C
    code that never returns.

    Raises:
        AuditTimeoutError: the time is over.
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
    before = signal.setitimer(signal.ITIMER_REAL, seconds)  # another plugin's timer, such as pytest-timeout's
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeIsUp as error:
        raise AuditTimeoutError(
            f"the audit has taken more than {seconds:g} s (--gradmask-timeout). Finished attacks are in the cache: run "
            "again with more time to go on after them. The traceback shows where the defense hangs"
        ) from error
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)
