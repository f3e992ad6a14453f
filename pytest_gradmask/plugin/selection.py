"""Which tests a run is to audit with, as far as the controller can know: xdist's workers collect, and it does not."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_gradmask.plugin.marker import is_audit


class Selection:
    """What was collected. A plugin object of every process; a worker's first report tells the controller's.

    Attributes:
        audits: node ids of the tests that are to audit, in order.
    """

    def __init__(self, *, is_worker: bool) -> None:
        self.audits: list[str] = []
        self._deselected: set[str] = set()
        self._files: set[str] = set()
        self._unsent = is_worker

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Remember what ``-k``, ``-m``, ``--deselect`` and other plugins leave out."""
        self._deselected |= {item.nodeid for item in items if is_audit(item)}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember which files were looked into."""
        self._files.add(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember what is left."""
        self.audits = [item.nodeid for item in session.items if is_audit(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        """Tell it on the first report, that of a setup: a worker that crashes later tells nothing more."""
        report = yield
        if self._unsent:
            self._unsent = False
            report.gradmask_selection = (self.audits, sorted(self._deselected), sorted(self._files))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take it off a worker's report; all workers collect the same."""
        if hasattr(report, "gradmask_selection"):
            audits, deselected, files = report.gradmask_selection
            self.audits, self._deselected, self._files = audits, set(deselected), set(files)

    def misses(self, test: str, config: pytest.Config) -> bool:
        """Whether a complete run that has no audit of this test should have had one.

        So it is if the test was selected, or if nobody left it out and yet it is not there: it was renamed, or deleted.
        """
        if test in self.audits:
            return True
        if test in self._deselected or config.getoption("lf", False):  # --lf leaves tests out without a word
            return False
        name = test.partition("::")[0]
        file = (config.rootpath / name).resolve()
        asked = ((config.invocation_params.dir / argument).resolve() for argument in config.args)
        covered = any(file == path or path in file.parents for path in asked)
        # Where a file is there and was not looked into, --ignore or its like is the reason.
        return covered and (name in self._files or not file.exists())
