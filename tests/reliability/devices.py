"""The default audits on the CPU and on the pretend device: what both say of each test."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import stored
from pytest_gradmask import InputError
from pytest_gradmask.auditing.research import versions
from tests.reliability.measurement import RESULTS, Record, renewed, run, tests

_PLACES: Mapping[str, Sequence[str]] = {
    "cpu": ("--gradmask-device=cpu",),
    "pretend": ("-p", "tests.devices.registered"),
}


def devices(files: Sequence[str] = (), results: Path = RESULTS) -> Record:
    """All default audits, or those of some files: then the stored results of others are kept."""
    said = {place: _said(options, files or ["audits"]) for place, options in _PLACES.items()}
    numbers = versions("pytest-gradmask", "torch")
    names = {test for outcomes in said.values() for test in outcomes}
    found: list[Record] = [
        {"test": test, **{place: said[place].get(test, "not run") for place in said}, "versions": numbers}
        for test in sorted(names)
    ]
    kept = [each for record in stored("devices", results) if files for each in record["audits"]]
    both = renewed(kept, found, lambda each: each["test"].partition("::")[0])
    return {"audits": sorted(both, key=lambda each: str(each["test"]))}


def _said(options: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """The outcome of each test, and the verdicts of its audits."""
    with tempfile.TemporaryDirectory() as folder:
        junit, report = Path(folder, "junit.xml"), Path(folder, "audits.json")
        run(
            sys.executable, "-m", "pytest", "--gradmask", "--gradmask-no-cache", "-n2", *options,
            f"--junitxml={junit}", f"--gradmask-json={report}", *files,
        )  # fmt: skip
        if not junit.exists():
            raise InputError("devices: pytest wrote no report; its output says why")
        verdicts: dict[str, list[str]] = {}
        for audit in json.loads(report.read_text())["audits"] if report.exists() else []:
            verdicts.setdefault(audit["test"], []).append(audit["verdict"])
        return {_name(each): " ".join([each["outcome"], *verdicts.get(_name(each), [])]) for each in tests(junit)}


def _name(test: Mapping[str, Any]) -> str:
    return f"{test['file']}::{test['test']}"
