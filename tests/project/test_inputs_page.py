"""The page on what people bring names tests that exist, and each row has one or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (?!what |---)(.+?) \| (.+?) \| (.*?) ?\|$", (ROOT / "docs/inputs.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("what", "taken", "shown"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_has_a_test_or_a_reason(what: str, taken: str, shown: str) -> None:  # noqa: ARG001 (the id of the case)
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown):
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    if taken.startswith("no"):
        assert len(taken) > len("no: ")
    else:
        assert "::" in shown or shown.startswith(("by hand", "not tried"))


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 15
