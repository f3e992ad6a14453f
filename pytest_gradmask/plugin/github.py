"""Output for GitHub Actions: a summary of the job, and annotations of its tests."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_gradmask.report.baseline import Comparison
    from pytest_gradmask.report.github import Location


@dataclass(slots=True, kw_only=True)
class Workflow:
    """A job of GitHub Actions.

    Attributes:
        root: pytest's root directory.
        workspace: root directory of the repository on the runner.
        summary: the file that the job's summary is added to, if there is one.
        locations: of tests that failed or have audits, by node id.
        failed: node ids of the tests that failed.
    """

    root: Path
    workspace: Path
    summary: Path | None
    locations: dict[str, Location] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, config: pytest.Config) -> Workflow | None:
        """The job that this run is part of; None outside of GitHub Actions."""
        if os.environ.get("GITHUB_ACTIONS") != "true":
            return None
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        workspace = Path(os.environ.get("GITHUB_WORKSPACE") or config.rootpath)
        return cls(root=config.rootpath, workspace=workspace, summary=Path(summary) if summary else None)

    def see(self, report: pytest.TestReport) -> None:
        """Remember the location of a test that failed or has audits."""
        if not (report.failed or hasattr(report, "gradmask_audits")):
            return
        from pytest_gradmask.report.github import Location

        file, line, _ = report.location  # lines count from 0; the line is None if a worker crashed
        location = Location(self.root / file, None if line is None else line + 1)
        self.locations[report.nodeid] = location.below(self.workspace)
        if report.failed:
            self.failed.add(report.nodeid)

    def write_summary(self, run: Mapping[str, Any], comparison: Comparison | None) -> list[str]:
        """Add to the job's summary.

        A file that cannot be written does not fail the run.

        Returns:
            Warnings for the terminal.
        """
        if self.summary is None or not (run["audits"] or run["not_run"] or comparison):
            return []
        from pytest_gradmask.report.github import step_summary

        try:
            with self.summary.open("a", encoding="utf-8") as file:
                file.write(step_summary(run, [] if comparison is None else comparison.lines()))
        except OSError as error:
            return [f"warning: the step summary cannot be written ({error})"]
        return []

    def annotations(
        self, run: Mapping[str, Any], selected: Collection[str], comparison: Comparison | None
    ) -> Iterator[str]:
        """Workflow commands that annotate failed and inconclusive audits, and results worse than the baseline."""
        from pytest_gradmask.report.github import annotate, annotation

        audits = {audit["test"] for audit in run["audits"]}.union(selected)
        failures = {test: location for test, location in self.locations.items() if test in self.failed & audits}
        yield from annotate(run["audits"], failures, self.locations)
        for row in comparison.failures if comparison is not None else ():
            text = f"baseline: {row.before}, now: {row.now}"
            yield annotation("error", f"{row.judgement}: {row.what} of {row.test}", text, self.locations.get(row.test))
