"""``--gradmask-timeout``: end audits that hang."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pytest_gradmask.errors import AuditTimeoutError, InputError
from pytest_gradmask.execution.packages import is_of_python
from pytest_gradmask.execution.time_limit import TimeIsUp, queries_end_after

_OURS = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}{os.sep}"


#: Seconds between two rings of the alarm, after the first.
_AGAIN = 0.2


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End what runs inside the context after this many seconds; None for no limit.

    A signal does that. It interrupts Python code, `time.sleep` and waiting for locks, again and again if the defense
    swallows what it raises. It cannot interrupt a call of C code that never returns.

    Raises:
        AuditTimeoutError: the time is over.
        InputError: this is not the main thread, or the system has no such signal.
    """
    if seconds is None:
        yield
        return
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        raise InputError(f"timeout={seconds:g}: needs the main thread of a Unix system; leave --gradmask-timeout out")

    ends, rung = time.monotonic() + seconds, False
    other = _OtherTimer.pause()

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        other.ring_if_due(number, frame)
        # The defense may swallow the first, by a bare ``except:``. No other may disturb what restores its state.
        if time.monotonic() >= ends and (not rung or _is_in_a_defense(frame)):
            rung = True
            raise TimeIsUp

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, other.seconds()), _AGAIN)
    try:
        try:
            with queries_end_after(seconds):
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if rung:  # what it answered then is no answer of the defense
            raise TimeIsUp
    except (Exception, TimeIsUp) as error:
        if not (rung or isinstance(error, TimeIsUp)):
            raise
        raise AuditTimeoutError(
            f"the audit has taken more than {seconds:g} s (--gradmask-timeout). Finished attacks are in the cache: run "
            "again with more time to go on after them. If the defense hangs, the traceback shows where"
        ) from error
    finally:
        other.resume()


@dataclass
class _OtherTimer:
    """A timer that was already running, such as pytest-timeout's. A process has only one; ours counts for both.

    Attributes:
        handler: of its signal.
        ends: when it rings, on the monotonic clock.
        interval: seconds between two rings; 0 for one that rings once.
    """

    handler: Any
    ends: float
    interval: float

    @classmethod
    def pause(cls) -> _OtherTimer:
        handler = signal.getsignal(signal.SIGALRM)
        seconds, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        return cls(handler, time.monotonic() + seconds if seconds else math.inf, interval)

    def seconds(self) -> float:
        """Seconds until it rings, and at least a moment: 0 would stop a timer."""
        return max(self.ends - time.monotonic(), 1e-6)

    def ring_if_due(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() < self.ends:
            return
        self.ends = time.monotonic() + self.interval if self.interval else math.inf
        if callable(self.handler):
            self.handler(number, frame)

    def resume(self) -> None:
        if self.handler is not None:  # it is if code in C has set it
            signal.signal(signal.SIGALRM, self.handler)
        if self.ends < math.inf:
            signal.setitimer(signal.ITIMER_REAL, self.seconds(), self.interval)


def _is_in_a_defense(frame: FrameType | None) -> bool:
    """Whether code runs now that is neither ours nor called by ours with nothing but PyTorch and Python in between."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OURS):
            return False
        if not (is_of_python(file) or file.startswith(_folder_of_torch())):
            return True
        frame = frame.f_back
    return False


def _folder_of_torch() -> str:
    file = getattr(sys.modules.get("torch"), "__file__", None)
    return "no file" if file is None else f"{os.path.dirname(file)}{os.sep}"
