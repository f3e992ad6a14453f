"""Every block of the guides runs, and comes out as the page says.

A block with a title is a file, one in ``sh`` that runs pytest is a run in the folder of these files. A comment behind
it says what comes out: ``<!-- outcome: passed=1 MASKED -->``; without one, it has to succeed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("tutorial", "adaptive-attacks", "extending", "purification")
#: Pages that quote what is printed on another.
QUOTING = {"tutorial": ("verdicts",)}

_BLOCK = re.compile(r"^```(\w+)(.*)\n((?:.*\n)*?)```\n(?:<!-- outcome: (.*) -->)?", re.MULTILINE)
_VERDICTS = {"MASKED", "NOT_MASKED", "INCONCLUSIVE"}


def blocks(guide: str) -> list[tuple[str, str, str, str]]:
    """Language, the rest of the fence's line, text and outcome of each block of code."""
    return _BLOCK.findall((DOCS / f"{guide}.md").read_text())


def perform(pytester: pytest.Pytester, guide: str) -> str:
    """Do what a page says, in a new folder; everything that pytest has printed."""
    printed = ""
    for language, rest, text, outcome in blocks(guide):
        title = re.search(r'title="(\S+?)( \(continued\))?"', rest)
        if title:
            with (pytester.path / title[1]).open("a" if title[2] else "w") as file:
                file.write(text)
        elif language == "sh" and text.startswith("pytest"):
            command = text.split()[1:]
            if "--gradmask" in command:
                command.append("--gradmask-device=cpu")
            result = pytester.runpytest(*command)
            printed += result.stdout.str()
            said = outcome.split()
            counts = {key: int(value) for key, _, value in (word.partition("=") for word in said) if value}
            if counts:
                result.assert_outcomes(**counts)
            else:
                assert result.ret == 0
            verdicts = set(re.findall(r"^(\w+MASKED|MASKED|INCONCLUSIVE) ", result.stdout.str(), re.MULTILINE))
            assert verdicts == _VERDICTS & set(said)
        else:
            assert language not in ("python", "sh") or text.startswith("pip "), f"nobody runs this block: {text}"
    return printed


@pytest.mark.longer
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_holds(pytester: pytest.Pytester, guide: str) -> None:
    if any("sklearn" in text for _, _, text, _ in blocks(guide)):
        pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")
    printed = perform(pytester, guide)
    for page in (guide, *QUOTING.get(guide, ())):
        quoted = [line for language, _, text, _ in blocks(page) if language == "text" for line in text.splitlines()]
        assert {_timeless(line) for line in quoted} <= {_timeless(line) for line in printed.splitlines()}


def _timeless(line: str) -> str:
    """A line of output without seconds, device, the width of the terminal and what pytest puts before an error."""
    line = line.removesuffix(" --gradmask-device=cpu")
    line = re.sub(r"^E +(AssertionError: )?", "", line)
    return re.sub(r"\s+", " ", re.sub(r"\d+\.\d+ +(?=\S+::)", "", line)).strip("= ")


def test_the_blocks_are_seen() -> None:
    assert sum(len(blocks(guide)) for guide in GUIDES) > 15
    assert all(any(outcome for *_, outcome in blocks(guide)) for guide in GUIDES)


def test_a_block_that_does_not_do_what_it_says_is_noticed(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pytester.path / "page.md"
    page.write_text('```python title="test_it.py"\ndef test_it(): assert 0\n```\n\n```sh\npytest\n```\n')
    monkeypatch.setattr("tests.project.test_guides.DOCS", pytester.path)
    with pytest.raises(AssertionError):
        perform(pytester, "page")
