"""Audits for GitHub Actions: Markdown for a job's summary, and annotations of the lines of tests.

An annotation is a workflow command. What has to be escaped in workflow commands:
https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_gradmask.report.text import AUDIT_COLUMNS, audit_row, counted, why_partial, worst_first
from pytest_gradmask.report.wording import shown_verdict


@dataclass(frozen=True, slots=True)
class Location:
    """Where a test is: its file, and its line, counted from 1, if known."""

    file: Path
    line: int | None = None

    def below(self, workspace: Path) -> Location:
        """The location with its file relative to the workspace, as GitHub wants it; unchanged for other files."""
        file = self.file.resolve()
        inside = file.is_relative_to(workspace.resolve())
        return Location(file.relative_to(workspace.resolve()), self.line) if inside else self


def step_summary(run: Mapping[str, Any], comparison: Sequence[str] = ()) -> str:
    """Markdown about a run in its JSON form: a table of its audits, worst verdicts first.

    Args:
        run: in its JSON form.
        comparison: lines about a baseline, if there is one.
    """
    audits = worst_first(run["audits"])
    parts = ["## Gradient masking audits", "", f"{counted(audits) or 'No audit ran'}."]
    if not run["complete"]:
        parts += ["", f"**The run is not complete**: {_escaped(why_partial(run))}."]
    if audits:
        columns = (*AUDIT_COLUMNS, "defense")
        parts += ["", _row(columns), _row(["---"] * len(columns))]
        for audit in audits:
            *figures, test = audit_row(audit)
            parts.append(_row([*figures, _escaped(test), _escaped(audit["defense"])]))
    if comparison:
        parts += ["", "<pre>", *(html.escape(line, quote=False) for line in comparison), "</pre>"]
    return "\n".join([*parts, "", ""])


def annotate(
    audits: Iterable[Mapping[str, Any]], failures: Mapping[str, Location], locations: Mapping[str, Location]
) -> Iterator[str]:
    """Workflow commands: one error for each failed test, one warning for each other inconclusive audit.

    Args:
        audits: in their JSON form.
        failures: location of each selected audit test that failed, by node id.
        locations: of all tests that have audits, by node id.
    """
    texts: dict[str, list[str]] = {test: [] for test in failures}
    for audit in audits:
        text = f"{shown_verdict(audit)}: {audit['defense']}: {'; '.join(audit['reasons'])}"
        if audit["test"] in failures:
            texts[audit["test"]].append(text)
        elif audit["verdict"] == "INCONCLUSIVE":
            yield annotation("warning", f"{shown_verdict(audit)}: {audit['test']}", text, locations.get(audit["test"]))
    for test, lines in texts.items():
        text = "\n".join(lines) or "The test failed before it had audited anything."
        yield annotation("error", f"failed: {test}", text, failures[test])


def annotation(level: Literal["error", "warning"], title: str, text: str, location: Location | None = None) -> str:
    """One workflow command. GitHub shows it at its location."""
    properties = {"title": title}
    if location is not None:
        line = {"line": str(location.line)} if location.line else {}
        properties = {"file": location.file.as_posix()} | line | properties
    fields = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {fields}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """The text with everything escaped that is HTML or Markdown, or that would end a table cell."""
    text = html.escape(" ".join(text.split()))
    return "".join(f"&#{ord(letter)};" if letter in "|\\`*_[]~@" else letter for letter in text)
