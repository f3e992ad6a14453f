"""Old private words are gone from identifiers, messages and documents: docs/glossary.md has the field's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Words that meant something here and nowhere else. As part of an identifier, between underscores or capitals.
PRIVATE = {
    *("ballot", "voted", "votes", "vetted", "vetting", "planted", "planting", "inquiry", "establishing"),
    *("fallen", "nought", "salt", "settled", "slopes", "spared", "standing", "told", "whoever", "worth"),
}
#: Phrases, in prose. "Settled" and "standing" alone are English.
PHRASES = re.compile(
    r"\b(nought|whoever|spared|ballots?|worth a look|left standing|unit tests? of attacks?)\b", re.IGNORECASE
)
#: Here the old words stand for what older versions wrote.
HISTORY = {"CHANGELOG.md", "json.py", "test_baseline.py", "test_words.py"}
FOLDERS = ("pytest_gradmask", "audits", "benchmarks", "examples", "tests")
CODE = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if file.name not in HISTORY)
PROSE = sorted(
    file
    for file in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "pytest_gradmask").rglob("*.jinja"))
    if file.name not in HISTORY
)


def identifiers(source: str) -> Iterator[str]:
    """Every name that a module defines or uses."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name


def private_words(source: str) -> set[str]:
    """The identifiers of a module that hold a private word."""
    return {
        name for name in identifiers(source) if PRIVATE & {part.lower() for part in re.findall(r"[A-Z]?[a-z]+", name)}
    }


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_identifiers_have_no_private_words(file: Path) -> None:
    assert not private_words(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", [*PROSE, *CODE], ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_has_no_private_words(file: Path) -> None:
    assert not PHRASES.findall(file.read_text(encoding="utf-8"))


def test_the_scan_sees_private_words() -> None:
    source = "def call_ballot(votes_taken): return Standing.salt"
    assert private_words(source) == {"call_ballot", "votes_taken", "Standing", "salt"}
    assert not private_words("def outstanding(salted): return assaulted")
    assert PHRASES.search("An image that is spared")
    assert len(CODE) > 200
    assert len(PROSE) > 15
