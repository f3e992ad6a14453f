"""What a test expects of an audit: assertions say it, and a listener hears it. Reports then show what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Verdict

_LISTENER: ContextVar[Callable[[Audit, Verdict], None] | None] = ContextVar("listener", default=None)


def expect(audit: Audit, verdict: Verdict) -> None:
    """Say that an audit is expected to have this verdict."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(audit, verdict)


@contextmanager
def listening(listener: Callable[[Audit, Verdict], None]) -> Iterator[None]:
    """Inside, the listener is called with each audit that an assertion is made on, and the verdict it expects."""
    before = _LISTENER.get()
    _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.set(before)
