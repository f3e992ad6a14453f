"""``--gradmask-deadline``: share the time of a run among its audits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest

from pytest_gradmask.plugin.marker import is_audit

#: What an audit gets once the time of the run is over: it ends at its first attack, and says so.
_NOTHING = 1e-3


class RunDeadline:
    """The time of a run. A plugin object of every process that runs tests.

    Each audit gets an equal share of what is left, for the tests that have not finished. An audit that is decided
    earlier leaves the rest of its share to those after it.

    Args:
        seconds: of the whole run, from now on.
        workers: of pytest-xdist, which run tests side by side.
        now: the time in seconds.
    """

    def __init__(self, seconds: float, workers: int, now: Callable[[], float] = time.monotonic) -> None:
        self._ends, self._workers, self._now = now() + seconds, workers, now
        self._left: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which audits are to run. Every worker collects all of them."""
        self._left = {item.nodeid for item in session.items if is_audit(item)}

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Forget a test that has finished."""
        self._left.discard(nodeid)

    def share(self) -> float:
        """Seconds for the next audit, above 0."""
        tests = max(1, math.ceil(len(self._left) / self._workers))
        return max((self._ends - self._now()) / tests, _NOTHING)
