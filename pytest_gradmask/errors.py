"""The errors this package raises on purpose.

Every message names the argument, the value it got and what to do about it.
"""

from __future__ import annotations


class GradmaskError(Exception):
    """Base class: catch this to catch everything the package raises on purpose."""


class InputError(GradmaskError, ValueError):
    """An argument (images, labels, threat model, option) is unusable as given."""


class DefenseError(GradmaskError):
    """The defense cannot be audited as given: NaN logits, train mode, probabilities, wrong shape."""


class DataError(GradmaskError):
    """A data set is missing, unreadable or malformed."""


class CheckpointError(GradmaskError):
    """A checkpoint or its card is missing, corrupted or does not match."""


class DependencyError(GradmaskError, ImportError):
    """An optional package is needed and not installed; the message says how to install it."""


class EngineError(GradmaskError):
    """Attacks cannot run where they should: no cluster answers, a worker lacks the code, the defense cannot be sent."""


class AuditTimeoutError(GradmaskError, TimeoutError):
    """An audit has taken longer than it may."""


class LostWorkerError(EngineError):
    """Whatever ran an attack has died, again and again."""
