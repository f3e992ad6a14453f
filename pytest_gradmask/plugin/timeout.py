"""``--gradmask-timeout``: end audits that hang."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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

    rung = False

    def ring(_: int, frame: FrameType | None) -> None:
        nonlocal rung
        # The defense may swallow the first, by a bare ``except:``. No other may disturb what restores its state.
        if not rung or _is_in_a_defense(frame):
            rung = True
            raise TimeIsUp

    handler = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)  # another plugin's timer, such as pytest-timeout's
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
            "again with more time to go on after them. The traceback shows where the defense hangs"
        ) from error
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


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
