"""Every finding is explained in docs/findings.md, and reports link there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pytest_gradmask
from pytest_gradmask.report.failure import explain
from pytest_gradmask.report.json import to_json
from tests.toys import KillGradient, audited, masked

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "findings.md"
CHECKLIST = ROOT / "docs" / "checklist.md"


def emitted() -> set[str]:
    """The ids of all findings in the package's source: literals, or constants of some module."""
    trees = {file: ast.parse(file.read_text()) for file in Path(pytest_gradmask.__file__).parent.rglob("*.py")}
    constants = {
        target.id: node.value.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: set[str] = set()
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                if not node.args and [keyword.arg for keyword in node.keywords] == [None]:
                    continue  # a stored finding that is loaded again
                first = node.args[0]
                name = constants.get(first.id) if isinstance(first, ast.Name) else getattr(first, "value", None)
                assert isinstance(name, str), f"{file}:{node.lineno}: the id of a finding is no constant"
                found.add(name)
    return found


def sections() -> dict[str, str]:
    """The text of each section, by its title."""
    titled = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(titled[::2], titled[1::2], strict=True))


def test_ids_and_sections_match() -> None:
    assert len(emitted()) > 20
    assert set(sections()) == emitted()


def test_sections_are_in_alphabetical_order() -> None:
    titles = list(sections())
    assert titles == sorted(titles)


@pytest.mark.parametrize("name", sorted(emitted()))
def test_a_section_has_its_three_parts(name: str) -> None:
    labels = re.findall(r"^\*(.+?):\*", sections()[name], flags=re.MULTILINE)
    assert labels == ["Raised if", "Explanation", "Remedy"]


def test_the_checklists_name_only_ids_that_exist() -> None:
    named = set(re.findall(r"\[([a-z-]+)\]\(findings\.md#([a-z-]+)\)", CHECKLIST.read_text()))
    assert len(named) > 25
    assert all(text == anchor for text, anchor in named)
    assert {anchor for _, anchor in named} <= emitted()


def test_the_checklists_name_only_attacks_that_exist() -> None:
    text = CHECKLIST.read_text()
    for paper in ("1802.00420", "1902.06705", "2002.08347", "2106.09947", "2206.13991"):
        assert f"https://arxiv.org/abs/{paper}" in text
    for name in set(re.findall(r"`(assert_\w+)`", text)):
        assert hasattr(pytest_gradmask, name)


def test_reports_link_to_the_section() -> None:
    audit = audited(masked(KillGradient))
    text, plain = explain(audit, "none"), to_json(audit)
    assert audit.findings
    for finding, entry in zip(audit.findings, plain["findings"], strict=True):
        file, _, anchor = finding.link.partition("#")
        assert (ROOT / file).is_file()
        assert anchor in sections()
        start = f"finding {finding.id}: "
        words = " ".join(text[text.index(start) :].split())
        assert words.removeprefix(start).startswith(finding.message)  # --gradmask-explain prints the section
        assert entry["link"] == finding.link
