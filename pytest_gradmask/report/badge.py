"""A badge for a README: JSON for an endpoint of shields.io (https://shields.io/badges/endpoint-badge)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_gradmask.execution.files import replaced
from pytest_gradmask.report.wording import shown_verdict


def badge(run: Mapping[str, Any]) -> dict[str, Any]:
    """The worst verdict of a run in its JSON form. The badge is green only if all ran and passed."""
    message, color = _message(run)
    return {"schemaVersion": 1, "label": "gradient masking", "message": message, "color": color}


def _message(run: Mapping[str, Any]) -> tuple[str, str]:
    verdicts = [shown_verdict(audit) for audit in run["audits"]]
    if "MASKED" in verdicts:
        return _how_many("MASKED", verdicts), "red"
    if not run["complete"]:
        return "run not complete", "yellow"
    for unclear in ("ERROR", "INCONCLUSIVE"):
        if unclear in verdicts:
            return _how_many(unclear, verdicts), "yellow"
    if not verdicts:
        return "no audits", "lightgrey"
    if run["exit_status"] != 0:
        return "tests failed", "yellow"
    judged = [audit for audit in run["audits"] if audit["verdict"] == "NOT_MASKED"]
    if not judged:
        return "MASKED as expected", "brightgreen"
    lowest = min(audit["all_attacks"]["value"] for audit in judged)
    return f"NOT_MASKED, robust accuracy {lowest:.1%}", "brightgreen"


def _how_many(verdict: str, verdicts: list[str]) -> str:
    number = verdicts.count(verdict)
    return verdict if number == len(verdicts) else f"{verdict}: {number} of {len(verdicts)} audits"


def write_badge(file: Path, run: Mapping[str, Any]) -> None:
    """Write the badge of a run in one atomic step."""
    with replaced(file) as part:
        part.write_text(json.dumps(badge(run), indent=2) + "\n", encoding="utf-8")
