"""What papers take from an audit."""

from __future__ import annotations

import csv
from typing import Any

from pytest_gradmask.report.quotes import bibtex, citation, csv_table, latex_table
from tests.report.report_toys import plain_audit, share

ATTACK = {**share([1, 1, 0, 0]), "kind": "gradient", "status": "done", "attacked": 4, "broken": 2}
SKIPPED = {**dict.fromkeys(("value", "low", "high")), "kind": "adaptive", "status": "skipped-early"}


def audit() -> dict[str, Any]:
    found = plain_audit(robust_accuracy={"my_attack": ATTACK, "square": SKIPPED})
    found["provenance"]["versions"] = {"pytest-gradmask": "0.1.0"}
    return found


def test_a_citation_has_budget_attacks_and_version() -> None:
    text = citation(audit())
    assert "with the budget smoke" in text
    assert text.endswith("Audited by pytest-gradmask 0.1.0 with my_attack.")
    assert "version = {0.1.0}" in bibtex(audit())
    assert "Budget smoke" in bibtex(audit())


def test_the_table_as_csv() -> None:
    rows = list(csv.DictReader(csv_table(audit()).splitlines()))
    assert [row["attack"] for row in rows] == ["no attack", "my_attack", "all attacks"]
    assert (rows[1]["robust accuracy"], rows[1]["broken"], rows[1]["kind"]) == ("0.5000", "2", "gradient")


def test_the_table_as_latex() -> None:
    lines = latex_table(audit()).splitlines()
    (row,) = [line for line in lines if line.startswith("my")]
    assert row.startswith(r"my\_attack & gradient & 4 & 2 & 50\,\% [")
    assert all(line.endswith(r"\\") and line.count("&") == 4 for line in lines if "&" in line)
