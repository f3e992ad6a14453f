"""Audits for GitHub Actions: Markdown for a job's summary, and annotations of the lines of tests.

Workflow commands, of which annotations are some, and what has to be escaped in them:
https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_gradmask.report.text import AUDIT_COLUMNS, audit_row, counted, why_partial, worst_first


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test is: its file, and its line from 1, if known."""

    file: Path
    line: int | None = None

    def below(self, workspace: Path) -> Place:
        """The same from a folder, if it is in there: GitHub wants paths from the workspace."""
        file = self.file.resolve()
        inside = file.is_relative_to(workspace.resolve())
        return Place(file.relative_to(workspace.resolve()), self.line) if inside else self


def step_summary(run: Mapping[str, Any], comparison: Sequence[str] = ()) -> str:
    """Markdown about a run in its JSON form: a table of its audits, the worst first.

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
    audits: Iterable[Mapping[str, Any]], failures: Mapping[str, Place], places: Mapping[str, Place]
) -> Iterator[str]:
    """One error a failed test, and one warning an inconclusive audit of another, as workflow commands.

    Args:
        audits: in their JSON form.
        failures: tests that were to audit and failed.
        places: of all tests that have audits.
    """
    said: dict[str, list[str]] = {test: [] for test in failures}
    for audit in audits:
        text = f"{audit['verdict']}: {audit['defense']}: {'; '.join(audit['reasons'])}"
        if audit["test"] in failures:
            said[audit["test"]].append(text)
        elif audit["verdict"] == "INCONCLUSIVE":
            yield annotation("warning", f"INCONCLUSIVE: {audit['test']}", text, places.get(audit["test"]))
    for test, lines in said.items():
        text = "\n".join(lines) or "The test failed before it had audited anything."
        yield annotation("error", f"failed: {test}", text, failures[test])


def annotation(level: Literal["error", "warning"], title: str, text: str, place: Place | None = None) -> str:
    """One workflow command; GitHub shows it at its place."""
    properties = {"title": title}
    if place is not None:
        properties = {"file": place.file.as_posix()} | ({"line": str(place.line)} if place.line else {}) | properties
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {told}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Nothing in it is markup, neither HTML nor Markdown, nor ends a cell of a table."""
    text = html.escape(" ".join(text.split()))
    return "".join(f"&#{ord(letter)};" if letter in "|\\`*_[]~@" else letter for letter in text)
