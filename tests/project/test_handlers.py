"""A handler of every exception raises another one, or says why it does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    file for folder in ("pytest_gradmask", "tests", "audits", "benchmarks") for file in (ROOT / folder).rglob("*.py")
]
BROAD = ("Exception", "BaseException")


def unexplained(code: str) -> Iterator[int]:
    """Lines of handlers of every exception that neither raise nor have a comment on their line."""
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or ast.unparse(node.type) in BROAD
        if (
            broad
            and not any(isinstance(each, ast.Raise) for each in ast.walk(node))
            and "#" not in lines[node.lineno - 1]
        ):
            yield node.lineno


def test_handlers_of_every_exception_say_why() -> None:
    found = {str(file.relative_to(ROOT)): [*unexplained(file.read_text(encoding="utf-8"))] for file in FILES}
    assert len(found) > 300
    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("handler", "lines"),
    [
        ("except Exception:\n    pass", [3]),
        ("except:\n    pass", [3]),
        ("except Exception:  # the user's code\n    pass", []),
        ("except Exception as error:\n    raise ValueError from error", []),
        ("except ValueError:\n    pass", []),
    ],
)
def test_what_counts(handler: str, lines: list[int]) -> None:
    assert [*unexplained(f"try:\n    print()\n{handler}")] == lines
