"""Collect every audit of a run, from all workers, and report them at its end."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradmask.errors import InputError
from pytest_gradmask.plugin.github import Workflow
from pytest_gradmask.plugin.progress import progress_line
from pytest_gradmask.plugin.selection import Selection
from pytest_gradmask.plugin.settings import Settings
from pytest_gradmask.plugin.stash import REPORT_ATTRIBUTES
from pytest_gradmask.printable import one_line, printable_data
from pytest_gradmask.report.records import AuditRecord

if TYPE_CHECKING:
    from pytest_gradmask.report.baseline import Comparison, Row

#: Exit statuses of pytest after which every selected test has had its turn.
_ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


class Collector:
    """A plugin object that is registered on the controller only. As an object, it needs no globals.

    Args:
        config: of the run.
        settings: of the run.
        selection: the tests that this run audits.

    Raises:
        pytest.UsageError: the baseline cannot be compared with.
    """

    def __init__(self, config: pytest.Config, settings: Settings, selection: Selection) -> None:
        self._config, self._settings, self._selection = config, settings, selection
        self._started = datetime.now(UTC)
        self._collected: dict[str, list[Any]] = {name: [] for name in REPORT_ATTRIBUTES}
        self._ran: set[str] = set()
        self._not_collected: list[str] = []
        self._workflow = Workflow.of(config)
        self._baseline = _read_baseline(settings)
        self._run: dict[str, Any] | None = None
        self._comparison: Comparison | None = None
        self._notes: list[str] = []

    @property
    def _records(self) -> list[AuditRecord]:
        return self._collected["gradmask_audits"]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember which files could not be collected. Every worker reports them, so each is stored once."""
        if report.failed and report.nodeid not in self._not_collected:
            self._not_collected.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take audits and transfer matrices from a test's report."""
        for name, collected in self._collected.items():
            collected += getattr(report, name, [])
        for number, verdict in getattr(report, "gradmask_expected", []):
            audits = [record["audit"] for record in self._records if record["audit"]["test"] == report.nodeid]
            if number <= len(audits):
                audits[number - 1]["expected"] = verdict
        if report.when == "call" or report.skipped:
            self._ran.add(report.nodeid)
        if self._workflow is not None:
            self._workflow.see(report)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Say that the work so far is not lost. pytest also calls this for errors of collection and its own exits."""
        settings, by_a_person = self._settings, type(excinfo.value) is KeyboardInterrupt
        kept = not settings.no_cache and (settings.cache or getattr(self._config, "cache", None))
        if by_a_person and kept:
            self._notes.append("Interrupted: finished attacks are kept. Run the same command to go on.")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files and call the report hook of other plugins, also after an interrupted run."""
        option = self._config.option
        if option.collectonly or getattr(option, "setupplan", False) or getattr(option, "setuponly", False):
            return  # no test runs
        # If a test was interrupted after its audits, they are on its item still, and on no report.
        for item in getattr(session, "items", []):
            for name, key in REPORT_ATTRIBUTES.items():
                self._collected[name] += item.stash.get(key, [])
        provenance = self._provenance()
        from pytest_gradmask.report.json import document

        not_run = [test for test in self._selection.audits if test not in self._ran] + self._not_collected
        ended = session.exitstatus in _ENDED
        audits = [record["audit"] for record in self._records]
        run = printable_data(document(audits, provenance, complete=ended and not not_run, not_run=not_run))
        with self._alone(session, f"the baseline {self._settings.baseline}"):
            self._apply_baseline(session, run)
        self._run = run = {**run, "exit_status": int(session.exitstatus)}
        self._write(session, run)
        with self._alone(session, "a report"):
            self._config.hook.pytest_gradmask_report(
                config=self._config, audits=run["audits"], provenance=run["provenance"]
            )

    @contextmanager
    def _alone(self, session: pytest.Session, what: str) -> Iterator[None]:
        """What fails in this context is noted and fails the run, and all other reports are written nevertheless."""
        try:
            yield
        except Exception as error:  # a full disk, or the code of another plugin
            self._notes.append(f"{what} failed: {type(error).__name__}: {error}")
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _apply_baseline(self, session: pytest.Session, run: dict[str, Any]) -> None:
        """Compare with the baseline, or write it. If that fails, a run that has passed so far fails."""
        file, failed = self._settings.baseline, False
        if self._baseline is not None:
            from pytest_gradmask.report.baseline import compare

            missed = partial(self._selection.misses, config=self._config) if run["complete"] else lambda test: False
            self._comparison = compare(self._baseline, run["audits"], missed)
            failed = self._comparison.failed
        elif file is not None and run["complete"] and run["audits"]:
            from pytest_gradmask.report.json import write_json

            write_json(file, {**run, "exit_status": int(session.exitstatus)})
            self._notes.append(f"baseline written to {file}: {len(run['audits'])} audits")
        elif file is not None:
            why = "no test has audited anything" if run["complete"] else "the run is not complete"
            self._notes.append(f"baseline {file} NOT written: {why}")
            failed = True
        if failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, session: pytest.Session, run: dict[str, Any]) -> None:
        from pytest_gradmask.report.badge import write_badge
        from pytest_gradmask.report.json import write_json
        from pytest_gradmask.report.sarif import write_sarif

        def write_report(file: Path, run: dict[str, Any]) -> None:
            from pytest_gradmask.report.html import write_html

            transfers = self._collected["gradmask_transfers"]
            with progress_line(self._config, "report", 0) as progress:
                progress(f"drawing {len(self._records)} audits")
                write_html(file, self._records, transfers, run["provenance"], complete=run["complete"])

        settings = self._settings
        for file, write in (
            (settings.json, write_json),
            (settings.badge, write_badge),
            (settings.sarif, write_sarif),
            (settings.html, write_report),
        ):
            if file is not None:
                with self._alone(session, f"writing {file}"):
                    write(file, run)
                    self._notes.append(f"written to {file}")
        if settings.adversarial is not None:
            with self._alone(session, f"saving adversarial images to {settings.adversarial}"):
                self._notes += _saved(self._records)
        if settings.history is not None and run["audits"]:
            from pytest_gradmask.report.history import keep

            with self._alone(session, f"writing to {settings.history}"):
                self._notes.append(f"written to {keep(settings.history, run, self._config.rootpath)}")
        if self._workflow is not None:
            with self._alone(session, "the summary of the job"):
                self._notes += self._workflow.write_summary(run, self._comparison)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a table of audits, the comparison with the baseline, and the names of the written files."""
        run = self._run
        if run is None or not (run["audits"] or run["not_run"] or self._comparison or self._settings.baseline):
            return
        from pytest_gradmask.report.text import fitted, summary

        terminalreporter.ensure_newline()
        terminalreporter.section("gradient masking audits")
        width = self._config.get_terminal_writer().fullwidth if terminalreporter.isatty else None
        lines = summary(run, every=self._config.get_verbosity() > 0, width=width)
        if self._comparison is not None:
            outcome = "FAILED" if self._comparison.failed else "passed"
            lines += ["", f"Compared with {self._settings.baseline}: {outcome}", *self._comparison.lines(width), ""]
        lines += [part for note in self._notes for part in fitted(note, width)]
        for line in lines:
            terminalreporter.write_line(one_line(line), **_colours(line))
        if self._workflow is not None:
            for command in self._workflow.annotations(run, self._selection.audits, self._comparison):
                terminalreporter.write_line(command)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """After pytest's last line, which counts tests alone, say that the run is worse than the baseline."""
        if self._comparison is not None and self._comparison.failed:
            failures = self._comparison.failures
            text = f"gradmask: FAILED, as {len({row.test for row in failures})} audits are {_judgements(failures)}"
            config.get_terminal_writer().sep("=", text, red=True, bold=True)

    def _provenance(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "command": sys.argv,
            "started": self._started.isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "settings": {
                "budget": settings.budget,
                "device": settings.torch_device,
                "data": settings.data,
                "samples": settings.samples,
                "seed": settings.seed,
            },
        }


def _saved(records: Sequence[AuditRecord]) -> list[str]:
    """Which files with adversarial images there are.

    Raises:
        OSError: one of them could not be written.
    """
    found = [record["evidence"]["adversarial"] for record in records if "adversarial" in record["evidence"]]
    failed = [each["error"] for each in found if "error" in each]
    if failed:
        raise OSError(failed[0])
    return [f"{each['broken']} adversarial images written to {each['file']}" for each in found]


def _judgements(rows: Sequence[Row]) -> str:
    """What is wrong with an audit of the baseline, in words: ``worse or missing``."""
    return " or ".join(dict.fromkeys(row.judgement for row in rows))


def _colours(line: str) -> dict[str, bool]:
    """How pytest is to colour a line of the summary: by the verdict, or by the outcome of a comparison."""
    begins = line.startswith
    if begins(("MASKED as expected ", "NOT_MASKED ", "better ")) or line.endswith(": passed"):
        return {"green": True}
    if begins(("MASKED ", "ERROR ", "worse ", "not comparable ", "missing ")) or line.endswith(": FAILED"):
        return {"red": True}
    return {"yellow": True} if begins("INCONCLUSIVE ") else {}


def _read_baseline(settings: Settings) -> list[dict[str, Any]] | None:
    if settings.baseline is None or settings.baseline_update:
        return None
    from pytest_gradmask.report.baseline import read_baseline

    try:
        return list(printable_data(read_baseline(settings.baseline)))
    except InputError as error:
        raise pytest.UsageError(f"--gradmask-baseline: {error}") from error
