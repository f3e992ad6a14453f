"""Runs are kept, and drawn over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.errors import InputError
from pytest_gradmask.report.history import draw, keep, main, read_history
from tests.plugin.audit_toys import CONFTEST, RUN
from tests.report.report_toys import plain_audit, plain_run


def stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: fine, masked, and one in which the audit raised."""
    raised: dict[str, Any] = {"error": "ValueError", "clean_accuracy": None, "all_attacks": None}
    audits = [plain_audit(), plain_audit(verdict="MASKED"), plain_audit(verdict="INCONCLUSIVE", **raised)]
    for day, audit in enumerate(audits, 1):
        monkeypatch.setenv("GITHUB_SHA", f"{day}" * 40)
        run = plain_run(audit)
        run["provenance"]["started"] = f"2026-01-0{day}T00:00:00+00:00"
        keep(folder / "runs", run, folder)
    return folder / "runs"


def test_each_run_is_kept_by_time_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored(tmp_path, monkeypatch)
    assert [file.name for file in sorted(folder.iterdir())] == [
        f"2026010{day}T000000-{str(day) * 10}.json" for day in (1, 2, 3)
    ]
    assert [commit for commit, _ in read_history(folder)] == ["1" * 10, "2" * 10, "3" * 10]


def test_the_page_has_a_mark_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = draw(read_history(stored(tmp_path, monkeypatch)))
    assert page.count("<circle") == 3
    assert page.count("<h2>") == 1
    assert "<h2>toy: ERROR</h2>" in page
    for text in ("1111111111: NOT_MASKED, 50", "2222222222: MASKED, 50", "3333333333: ERROR<"):
        assert text in page
    assert "<p>Runs: 3, the last of 2026-01-03 00:00:00 UTC." in page
    assert "http" not in page
    assert "<script" not in page


def test_names_cannot_change_the_page() -> None:
    page = draw([("c", plain_run(plain_audit(defense="<script>alert(1)</script>")))])
    assert "<script" not in page


def test_a_defense_that_comes_later_begins_later() -> None:
    runs = [("a", plain_run(plain_audit())), ("b", plain_run(plain_audit(), plain_audit(defense="new")))]
    assert draw(runs).count("<circle") == 3


def test_the_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(stored(tmp_path, monkeypatch)), str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "has no runs; pytest --gradmask --gradmask-history=" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "none" / "page.html")]) == 2  # a folder that is not there


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2}'])
def test_another_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json: is not a file of --gradmask-history"):
        read_history(tmp_path)


def test_the_option_keeps_a_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it="def test_it(audited): assert audited('MASKED').clean")
    pytester.runpytest(*RUN, "--gradmask-history=runs").stdout.fnmatch_lines(["written to *runs*.json"])
    (file,) = (pytester.path / "runs").iterdir()
    assert json.loads(file.read_text())["audits"][0]["verdict"] == "MASKED"


def test_the_ini_value_keeps_a_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\ngradmask_history = runs")
    pytester.makepyfile(test_it="def test_it(audited): assert audited('MASKED').clean")
    pytester.runpytest(*RUN)
    assert len(list((pytester.path / "runs").iterdir())) == 1
