"""The claims of the paper with its figures, and the files that store our measurements."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gradmask.auditing.research import replaced, versions

RESULTS = Path(__file__).parent / "results"


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
