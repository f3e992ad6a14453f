"""The exceptions that this package raises.

Every message names the argument, its value and what to do about it.
"""

from __future__ import annotations

from pytest_gradmask.printable import printable


class GradmaskError(Exception):
    """Base class of all exceptions that this package raises deliberately. Their messages are printable."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(each) if isinstance(each, str) else each for each in arguments))


class InputError(GradmaskError, ValueError):
    """An argument (images, labels, threat model, option) is unusable."""


class DefenseError(GradmaskError):
    """The defense cannot be audited: NaN logits, train mode, probabilities, wrong shape."""


class DataError(GradmaskError):
    """A data set is missing, unreadable or malformed."""


class CheckpointError(GradmaskError):
    """A checkpoint or its card is missing, corrupted or does not match."""


class DependencyError(GradmaskError, ImportError):
    """An optional package is needed and not installed; the message says how to install it."""


class EngineError(GradmaskError):
    """The engine cannot run attacks: no cluster answers, a worker lacks the code, the defense cannot be sent."""


class AuditTimeoutError(GradmaskError, TimeoutError):
    """An audit has exceeded its time limit."""


class DeadlineError(GradmaskError, TimeoutError):
    """An attack asks the defense after its deadline. The audit then ends with what it has."""


class LostWorkerError(EngineError):
    """The worker that ran an attack has died, and so have all retries."""
