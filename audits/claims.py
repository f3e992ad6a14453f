"""The claims of the paper with its figures, and the files that store our measurements."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.auditing.research import replaced, versions

RESULTS = Path(__file__).parent / "results"

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of arXiv:2402.17018 or a question it leaves open.

    Attributes:
        text: the claim, in our words.
        paper: what the paper says in figures.
        explanation: our explanation of the result here.
        question: whether it has an answer in place of a verdict.
        answer: of a question whose answer is no rule's, in a few words.
        shares: keys of the claims whose measurements count for this one, too.
    """

    text: str
    paper: str
    explanation: str = ""
    question: bool = False
    answer: str = ""
    shares: tuple[str, ...] = ()


def _plain(value: Any) -> Any:
    return " ".join(value.split()) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


CLAIMS = {
    number: Claim(**{key: _plain(value) for key, value in entry.items()})
    for number, entry in tomllib.loads((Path(__file__).parent / "claims.toml").read_text()).items()
}


def stored(folder: Path = RESULTS) -> list[Record]:
    """All measurements that the audits of the claims stored, ordered by claim and test."""
    records = [
        {**record, "file": file.name}
        for file in sorted(folder.glob("*.json"))
        for record in json.loads(file.read_text())
    ]
    return sorted(records, key=lambda record: (list(CLAIMS).index(record["claim"]), record["test"]))


def not_reproduced(test: str, why: str) -> pytest.MarkDecorator:
    """Expect that the test of a claim fails. The reason has the stored figures.

    Args:
        test: name of the test, with its parameter if only one of its cases fails.
        why: in a few words.
    """
    found = [record for record in stored() if test in record["test"] and not record["holds"]]
    figures = [f"{each['ours']} ({each['images']} images, seed {each['seed']})" for each in found]
    reason = f"{why}. Measured: {'; '.join(figures) or 'nothing is stored yet'}"
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


def merge(file: Path, records: list[dict[str, Any]]) -> None:
    """Add records to a file in one atomic step. Records of the same tests are replaced."""
    used = versions("pytest-gradmask", "torch", "torchvision", "timm", "pyautoattack")
    existing = json.loads(file.read_text()) if file.exists() else []
    fresh = {record["test"] for record in records}
    merged = [record for record in existing if record["test"] not in fresh]
    merged += [{**record, "versions": used} for record in records]
    merged.sort(key=lambda record: (record["claim"], record["test"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as part:
        part.write_text(json.dumps(merged, indent=1) + "\n")
