"""Collects every audit of a run, from all workers, and reports them at its end."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from pytest_gradmask.plugin.settings import Settings


class Collector:
    """Registered on the controller only; a plugin object, so that nothing is global."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = datetime.now(UTC)
        self._audits: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the audits off a report."""
        self._audits += getattr(report, "gradmask_audits", [])

    def pytest_sessionfinish(self) -> None:
        """Write the JSON file, also of a run that was interrupted."""
        if self._settings.json is None or not self._settings.enabled:
            return
        from pytest_gradmask.report.json import write_json

        write_json(self._settings.json, self._audits, self._provenance())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A table with one line an audit."""
        if not self._audits:
            return
        from pytest_gradmask.report.text import summary

        terminalreporter.section("gradient masking audits")
        for line in summary(self._audits):
            terminalreporter.write_line(line)
        if self._settings.json is not None:
            terminalreporter.write_line(f"written to {self._settings.json}")

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
