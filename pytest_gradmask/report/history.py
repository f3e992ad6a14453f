"""Runs over time: ``--gradmask-history=DIR`` keeps them, ``python -m pytest_gradmask.report.history`` draws them."""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import subprocess  # nosec B404
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.report.json import upgraded, write_json
from pytest_gradmask.report.wording import moment, percent, shown_verdict

#: Environment variables of CI services that hold the commit.
_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA", "BUILDKITE_COMMIT", "CIRCLE_SHA1")
_ROW, _STEP, _MARGIN = 120, 28, 40  # pixels: height of a chart, width of a run, space around
_COLOURS = {
    "MASKED": "#a11d0b",
    "ERROR": "#a11d0b",
    "INCONCLUSIVE": "#b07a00",
    "MASKED as expected": "#0b6b4f",
    "NOT_MASKED": "#0b6b4f",
}


def keep(folder: Path, run: Mapping[str, Any], root: Path) -> Path:
    """Write a run (`report.json.document`) to a file of its own in a folder, named by its time and commit.

    Args:
        folder: is made if it is not there.
        run: in its JSON form.
        root: of the repository that is tested.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = re.sub(r"[^\dT]", "", str(run["provenance"]["started"]).partition("+")[0])
    file = folder / f"{started}-{_commit(root)[:10] or 'unknown'}.json"
    write_json(file, run)
    return file


def _commit(root: Path) -> str:
    """The commit that is tested; empty if it is unknown."""
    named = next((os.environ[name] for name in _COMMITS if os.environ.get(name)), "")
    if named:
        return re.sub(r"\W", "", named)
    try:
        done = subprocess.run(  # nosec B603 B607
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read_history(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The runs of a folder, the oldest first, each with its commit.

    Raises:
        InputError: there is no such folder, it has no runs, or a file is none.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder}: has no runs; pytest --gradmask --gradmask-history={folder} keeps one")
    runs = []
    for file in files:
        try:
            run = upgraded(json.loads(file.read_text(encoding="utf-8")))
            runs.append((file.stem.partition("-")[2], run))
            _ = run["audits"], run["provenance"]["started"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}: is not a file of --gradmask-history ({type(error).__name__}: {error})"
            ) from error
    return runs


def draw(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One page with a chart for each audit: verdict, clean and robust accuracy over the runs."""
    names = dict.fromkeys(
        (audit["test"], audit["defense"]) for _, run in runs for audit in run["audits"]
    )  # in the order in which they first appeared
    charts = [_chart(name, runs) for name in names]
    latest = runs[-1][1]["provenance"]["started"]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>Gradient masking over time</title>",
            "<style>body { font: 1rem/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }",
            "figure { margin: 1rem 0; overflow-x: auto; } :root { color-scheme: light dark; }",
            "svg text { fill: currentColor; font-size: 11px; }</style></head><body><main>",
            "<h1>Gradient masking over time</h1>",
            f"<p>Runs: {len(runs)}, the last of {html.escape(moment(latest))}. Lines: accuracy without an attack",
            "(dotted) and under all attacks. Colours: green for NOT_MASKED and for masks that are expected,",
            "yellow for INCONCLUSIVE, red for MASKED and errors.</p>",
            *charts,
            "</main></body></html>",
        ]
    )


def _chart(name: tuple[str, str], runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    test, defense = name
    found = [
        next((audit for audit in run["audits"] if (audit["test"], audit["defense"]) == name), None) for _, run in runs
    ]
    width, height = 2 * _MARGIN + _STEP * len(runs), _ROW + 2 * _MARGIN
    parts = [f'<text x="0" y="{_height(share)}">{percent(share)}</text>' for share in (0.0, 0.5, 1.0)]
    for key, dots in (("clean_accuracy", ' stroke-dasharray="3 3"'), ("all_attacks", "")):
        points = [
            f"{_MARGIN + _STEP * index},{_height(audit[key]['value'])}"
            for index, audit in enumerate(found)
            if audit and audit[key]
        ]
        parts.append(f'<polyline fill="none" stroke="currentColor"{dots} points="{" ".join(points)}"/>')
    for index, (audit, (commit, run)) in enumerate(zip(found, runs, strict=True)):
        if audit is None:
            continue
        verdict, share = shown_verdict(audit), audit["all_attacks"]
        value = share["value"] if share else 0.0
        text = f"{moment(run['provenance']['started'])} {commit}: {verdict}" + (f", {percent(value)}" if share else "")
        parts.append(
            f'<circle cx="{_MARGIN + _STEP * index}" cy="{_height(value)}" r="5" fill="{_COLOURS[verdict]}">'
            f"<title>{html.escape(text)}</title></circle>"
        )
    last = next(audit for audit in reversed(found) if audit is not None)
    title = f"{defense}: {shown_verdict(last)}"
    label = f"{title}, over {len(runs)} runs"
    return (
        f"<h2>{html.escape(title)}</h2><p><code>{html.escape(test)}</code></p>"
        f'<figure tabindex="0"><svg role="img" aria-label="{html.escape(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg></figure>'
    )


def _height(share: float) -> float:
    return round(_MARGIN + _ROW * (1 - share), 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the runs of a folder."""
    parser = argparse.ArgumentParser(prog="python -m pytest_gradmask.report.history", description=__doc__)
    parser.add_argument("folder", type=Path, help="that --gradmask-history has written to")
    parser.add_argument("file", type=Path, nargs="?", default=Path("history.html"), help="to write (history.html)")
    given = parser.parse_args(arguments)
    try:
        page = draw(read_history(given.folder))
        with replaced(given.file) as part:
            part.write_text(page, encoding="utf-8")
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"written to {given.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
