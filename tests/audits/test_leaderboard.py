"""The leaderboard: its entries are valid and come from what is stored, and its page shows and sorts them."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from audits.leaderboard.__main__ import main
from audits.leaderboard.entries import FIXTURES, FOLDER, from_zoo, problems, stored
from audits.leaderboard.page import PAGE, render
from audits.zoo import ZOO
from audits.zoo.measurement import stored as stored_records
from pytest_gradmask import InputError, ThreatModel
from pytest_gradmask.report.json import document, to_json
from tests.report.test_html_in_chromium import CHROMIUM
from tests.toys import IMAGES, KillGradient, audited, linear, masked


class Cells(HTMLParser):
    """The text of the first two cells of each row, and everything that the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        self.inside = tag in ("td", "summary") or (self.inside and tag not in ("p", "small", "th"))

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_stored_entries_are_valid_and_have_all_records() -> None:
    entries = stored()
    assert entries.keys() >= stored_records().keys()
    assert len(entries) > 50
    assert {entry["verdict"] for entry in entries.values()} >= {"MASKED", "NOT_MASKED"}


@pytest.mark.parametrize("name", ["undefended-resnet", "trained-front-end", "randomized-ensemble", "jpeg"])
def test_an_entry_is_what_its_record_gives(name: str) -> None:
    """If not: python -m audits.leaderboard collect && python -m audits.leaderboard page."""
    entry = stored()[name]
    assert entry == from_zoo(ZOO[name], stored_records()[name])
    for file, digest in entry["checkpoints"].items():
        assert hashlib.sha256((FIXTURES / file).read_bytes()).hexdigest() == digest


def test_all_figures_are_those_of_the_records() -> None:
    entries = stored()
    for name, record in stored_records().items():
        assert entries[name]["verdict"] == record["audit"]["verdict"]
        assert entries[name]["figures"]["all_attacks"]["value"] == record["audit"]["all_attacks"]["value"]


def test_the_page_is_that_of_the_entries_and_loads_nothing() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == render(stored())
    page = Cells(text)
    assert page.loaded == ["data:,"]  # an empty icon, so that a browser asks for none
    assert "@import" not in text
    assert "url(" not in text
    rows = [row for row in page.rows if row]
    assert sorted(row[0] for row in rows) == sorted(stored())
    verdicts = [row[1] for row in rows]
    assert verdicts == sorted(verdicts, key=("NOT_MASKED", "INCONCLUSIVE", "MASKED").index)


def test_what_people_write_is_escaped() -> None:
    entry = {**stored()["jpeg"], "source": "<script>alert(1)</script>", "by": '"><b>'}
    text = render({"jpeg": entry})
    assert "<script>alert" not in text
    assert "<b>" not in text


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "name": (lambda entry: entry.update(name="My Model"), "its name must be"),
    "command": (lambda entry: entry.update(command=""), "command is empty"),
    "field": (lambda entry: entry.pop("gap"), "has the fields"),
    "hash": (lambda entry: entry["checkpoints"].update(a="12"), "the hash of a is no SHA-256"),
    "verdict": (lambda entry: entry.update(verdict="ROBUST"), "its verdict is 'ROBUST'"),
    "pass": (lambda entry: entry.update(verdict="NOT_MASKED"), "NOT_MASKED needs a gap"),
    "no gap": (lambda entry: entry.update(gap=None), "MASKED needs a gap"),
    "order": (lambda entry: entry["figures"]["all_attacks"].update(value=0.9), "accuracies must fall"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_an_entry_that_cannot_be_true_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    entry = copy.deepcopy(stored()["trained-front-end"])
    assert problems(entry) == []
    change(entry)
    (tmp_path / "trained-front-end.json").write_text(json.dumps(entry))
    with pytest.raises(InputError, match=message):
        stored(tmp_path)


def test_a_file_has_the_name_of_its_entry(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "jpeg.json", tmp_path / "other.json")
    with pytest.raises(InputError, match="its name is 'jpeg'"):
        stored(tmp_path)


def test_a_run_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audits = [audited(linear(), threat=ThreatModel(1e-4), exhaustive=True), audited(masked(KillGradient), IMAGES)]
    run = document(
        [
            {**to_json(audit), "test": f"test_{number}", "provenance": {**audit.provenance, "reproduce": "pytest x"}}
            for number, audit in enumerate(audits)
        ],
        {},
    )
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "weights.bin").write_bytes(b"weights")
    folder = tmp_path / "entries"
    folder.mkdir()
    arguments = ["--folder", str(folder), "add", str(tmp_path / "run.json"), "--source=a paper", "--by=me"]
    assert main([*arguments, "--name=mine"]) == 2
    assert "has 2 audits of ''; name one with --test" in capsys.readouterr().err
    assert main([*arguments, "--name=mine", "--test=test_1", "--checkpoint", str(tmp_path / "none.bin")]) == 2
    assert main([*arguments, "--name=mine", "--test=test_1", "--checkpoint", str(tmp_path / "weights.bin")]) == 0
    assert main([*arguments, "--name=honest", "--test=test_0"]) == 0
    entries = stored(folder)
    assert (entries["mine"]["verdict"], entries["honest"]["verdict"]) == ("MASKED", "NOT_MASKED")
    assert entries["mine"]["checkpoints"] == {"weights.bin": hashlib.sha256(b"weights").hexdigest()}
    assert entries["honest"]["command"] == "pytest x"
    page = tmp_path / "page.html"
    assert main(["--folder", str(folder), "page", "--output", str(page)]) == 0
    assert [row[0] for row in Cells(page.read_text()).rows if row] == ["honest", "mine"]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("[1, 2]")
    assert main(["add", str(tmp_path / "run.json"), "--name=a", "--source=b", "--by=c"]) == 2
    assert "is no run of --gradmask-json" in capsys.readouterr().err


@pytest.mark.longer
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_headings_sort_the_table(tmp_path: Path) -> None:
    assert CHROMIUM is not None

    def clicked(column: int, times: int) -> list[str]:
        page = tmp_path / "page.html"
        clicks = f"for (let n = 0; n < {times}; n++) document.querySelectorAll('th button')[{column}].click();"
        page.write_text(render(stored()).replace("</body>", f"<script>{clicks}</script></body>"))
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, "--dump-dom", str(page)], capture_output=True, text=True, timeout=120, check=True
        )
        return [row[0] for row in Cells(done.stdout).rows if row]

    names, entries = sorted(stored()), stored()
    assert clicked(0, 1) == names
    assert clicked(0, 2) == names[::-1]
    clean = [entries[name]["figures"]["clean"]["value"] for name in clicked(2, 2)]
    assert clean == sorted(clean, reverse=True)
    gaps = [entries[name]["gap"] for name in clicked(5, 1)]
    known = [gap["estimate"] for gap in gaps if gap]
    assert known == sorted(known)
    assert gaps[: len(known)] == [gap for gap in gaps if gap]  # those without one come last


def test_contributing_says_how() -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert re.search(r"^## Add an audited checkpoint$", text, re.MULTILINE)
    for command in ("python -m audits.leaderboard add", "python -m audits.leaderboard page", "--gradmask-json"):
        assert command in text
