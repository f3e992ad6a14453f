"""The page on what people bring names tests that exist, and each row has one or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/inputs.md").read_text()
ROWS = re.findall(r"^\| (?!what |---)(.+?) \| (.+?) \| (.*?) ?\|$", TEXT, re.MULTILINE)


def problem(taken: str, shown: str) -> str:
    """What is wrong with a row: it names a test that is not there, or neither a test nor a reason. Empty if nothing."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    for file, name in named:
        found = ROOT / file
        if not (found.is_file() and re.search(rf"^def {name}\(", found.read_text(), re.MULTILINE)):
            return f"{file} has no {name}"
    if shown.count("::") != len(named):
        return "a name of a test that cannot be read"
    if taken.startswith("no"):
        return "" if re.match(r"no[:,] \w.{20,}", taken) else "a no without a reason"
    return "" if named or re.match(r"by hand, with [\w-]+ \d", shown) else "a yes that nothing shows"


@pytest.mark.parametrize(("what", "taken", "shown"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_has_a_test_or_a_reason(what: str, taken: str, shown: str) -> None:
    assert problem(taken, shown) == "", what


def test_only_what_is_a_module_already_is_shown_by_hand_alone() -> None:
    assert [what for what, taken, shown in ROWS if not taken.startswith("no") and "::" not in shown] == [
        "Lightning modules"
    ]


@pytest.mark.parametrize(
    ("taken", "shown", "said"),
    [
        ("yes", "`tests/project/test_inputs_page.py::test_the_page_has_rows`", ""),
        ("yes", "`tests/project/test_inputs_page.py::test_another`", "has no test_another"),
        ("yes", "`tests/project/none.py::test_another`", "has no test_another"),
        ("yes", "tests/project/test_inputs_page.py::test_the_page_has_rows", "cannot be read"),
        ("likewise", "", "nothing shows"),
        ("likewise", "not tried: too large", "nothing shows"),
        ("likewise", "by hand, with jax 0.10.2", ""),
        ("no", "", "without a reason"),
        ("no: a batch is one tensor, and these are several", "", ""),
    ],
)
def test_a_bad_row_is_noticed(taken: str, shown: str, said: str) -> None:
    assert said in problem(taken, shown)
    assert bool(said) is bool(problem(taken, shown))


def test_no_line_of_a_table_is_left_out() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("| ") and not re.match(r"\| (what|---) ", line)]
    assert len(lines) == len(ROWS) > 35


def test_the_page_has_rows() -> None:
    headings = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert headings[:5] == ["Kinds of models", "Shapes of inputs", "Outputs", "Threat models", "Data"]
