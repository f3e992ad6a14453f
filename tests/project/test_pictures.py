"""The pictures of the site show what the program writes today. ``python -m docs.pictures`` makes them anew."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from docs import pictures
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.report.failure import explain
from pytest_gradmask.report.json import to_json
from pytest_gradmask.report.records import AuditRecord
from pytest_gradmask.verdict.audit import Audit

REPRODUCE = "pytest test_my_defense.py::test_my_defense --gradmask"


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """The audit behind the picture."""
    file = tmp_path / "fa" / "failure.result"
    file.parent.mkdir()
    shutil.copy(pictures.AUDIT, file)
    found = Cache(tmp_path).audit("failure")
    assert found is not None
    return replace(found, provenance={**found.provenance, "reproduce": REPRODUCE})


def message(lines: Iterable[str]) -> list[str]:
    """The lines that pytest marks as the message of a failure."""
    marked = (line.removeprefix("E").strip() for line in lines if line.startswith("E"))
    return [line.removeprefix("AssertionError: ") for line in marked]


def written_today(audit: Audit) -> list[str]:
    lines = explain(audit, "no gradient masking").splitlines()
    return [line.strip() for line in pictures.shortened(lines)]


def test_the_picture_has_the_words_that_are_written_today(audit: Audit) -> None:
    shown = message(pictures.words(pictures.FAILURE.read_text()))
    assert len(shown) > 20
    assert shown == written_today(audit)


def test_other_words_are_noticed(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = message(pictures.words(pictures.FAILURE.read_text()))
    assert shown != written_today(replace(audit, exhaustive=True))  # without "at most"
    monkeypatch.setattr("pytest_gradmask.report.failure.hidden_by", lambda plain: "something else")
    assert shown != written_today(audit)


def test_the_sample_report_is_what_is_written_today(audit: Audit) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
    from pytest_gradmask.report.html import render

    provenance = {"command": ["pytest"], "started": "then", "python": "", "platform": "", "settings": {}}
    record = AuditRecord(audit=to_json(audit), evidence={})
    sample = set(pictures.REPORT.read_text().splitlines())
    other = [line for line in render([record], [], provenance).splitlines() if line not in sample]
    # Of another run: when, where and how it was. A chart is another with another release of matplotlib.
    assert all(re.match(r'<p class="quiet">1 audit|<img src="data:|<tr><th scope="row">', line) for line in other)
    assert len(other) < 12


def test_a_picture_is_read_as_it_was_drawn() -> None:
    printed = [
        "    def test_my_defense(gradmask):",
        "\x1b[1m\x1b[31mE       AssertionError: MASKED: a <b> & c\x1b[0m",
        "\x1b[1m\x1b[31mE       all attacks      20    0.0%\x1b[0m",
        "E       a note",
        "E       next: this",
        "E       reproduce: that",
        "\x1b[31mFAILED\x1b[0m test_it.py",
        "===",
    ]
    shown = pictures.words(pictures.picture("\n".join(printed)))
    assert shown[:2] == ["$ pytest --gradmask", ""]
    assert shown[2:5] == [
        "    def test_my_defense(gradmask):",
        "E       AssertionError: MASKED: a <b> & c",
        "E       all attacks      20    0.0%",
    ]
    assert "E       a note" not in shown
    assert f"E       {pictures.CUT}" in shown
    assert shown[-5:] == ["E       next: this", "E       reproduce: that", "", "FAILED test_it.py", "==="]


@pytest.mark.longer
def test_a_run_that_does_not_fail_as_masked_makes_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FILES", {"test_it.py": "def test_it(): pass"})
    with pytest.raises(RuntimeError, match="1 passed"):
        pictures.run(tmp_path)


@pytest.mark.slow
def test_the_picture_is_of_the_run_as_it_is_today(tmp_path: Path) -> None:
    again = pictures.words(pictures.picture(pictures.run(tmp_path)))
    assert again[:-1] == pictures.words(pictures.FAILURE.read_text())[:-1]  # but for the seconds
