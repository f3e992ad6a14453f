"""What raised is tried once more, and what then works is noticed.

The optional parts of an audit, searches and probes, go on without a result where a defense raises: it may not bear to
be asked in their way. A defense that raises now and then would not be seen through there, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TypeVar

from pytest_gradmask.errors import DefenseError, GradmaskError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.context import holding

Result = TypeVar("Result")

_FAULTS: ContextVar[list[str] | None] = ContextVar("faults", default=None)


def faults_noticed(faults: list[str]) -> AbstractContextManager[None]:
    """Inside, `at_second_try` tries again. The list gets what was raised once, and not the next time, in words."""
    return holding(_FAULTS, faults)


def at_second_try(part: Callable[[], Result]) -> Result:
    """What a part returns. Inside of `faults_noticed`, it is called again if it raises.

    Attacks are not tried again: one that raises has failed, and says so.

    Raises:
        Exception: what the part raises the second time; or the first time, outside of `faults_noticed` and if memory
            has run out or the error is of this package, and not about the defense.
    """
    faults = _FAULTS.get()
    try:
        return part()
    except Exception as error:  # of the defense, which may raise anything
        deliberate = isinstance(error, GradmaskError) and not isinstance(error, DefenseError)
        if faults is None or deliberate or out_of_memory(error):
            raise
        raised = f"{type(error).__name__}: {error}"
    # Only after the handler: the exception keeps tensors alive.
    result = part()
    faults.append(raised)
    return result
