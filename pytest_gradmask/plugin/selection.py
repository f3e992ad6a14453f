"""Which tests of a run are audits. Under pytest-xdist only workers collect tests, so they send this on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_gradmask.plugin.marker import is_audit


class Selection:
    """What was collected. A plugin object of every process.

    A worker sends its selection with its first report. The controller's object takes it from there.

    Args:
        is_worker: whether this process is a worker of pytest-xdist.

    Attributes:
        audits: node ids of the selected tests that are audits, in order.
    """

    def __init__(self, *, is_worker: bool) -> None:
        self.audits: list[str] = []
        self._deselected: set[str] = set()
        self._files: set[str] = set()
        self._unsent = is_worker

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Remember the audits that ``-k``, ``-m``, ``--deselect`` and other plugins leave out."""
        self._deselected |= {item.nodeid for item in items if is_audit(item)}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember which files were collected."""
        self._files.add(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which audits are selected."""
        self.audits = [item.nodeid for item in session.items if is_audit(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        """Send the selection with the first report, that of a setup: a worker may crash before it sends another."""
        report = yield
        if self._unsent:
            self._unsent = False
            report.gradmask_selection = (self.audits, sorted(self._deselected), sorted(self._files))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the selection from a worker's report. All workers collect the same tests."""
        if hasattr(report, "gradmask_selection"):
            audits, deselected, files = report.gradmask_selection
            self.audits, self._deselected, self._files = audits, set(deselected), set(files)

    def misses(self, test: str, config: pytest.Config) -> bool:
        """Whether a complete run that has no audit of this test should have had one.

        It should if the test was selected. It should, too, if the test was renamed or deleted: it does not exist then,
        though the run covers its file and no option leaves it out.
        """
        if test in self.audits:
            return True
        if test in self._deselected or config.getoption("lf", False):  # --lf does not report what it leaves out
            return False
        name = test.partition("::")[0]
        file = (config.rootpath / name).resolve()
        paths = ((config.invocation_params.dir / argument).resolve() for argument in config.args)
        covered = any(file == path or path in file.parents for path in paths)
        # A file that exists and was not collected was left out by --ignore or a similar option.
        return covered and (name in self._files or not file.exists())
