"""docs/reliability.md shows the stored results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.records import store
from tests.reliability import __main__ as command
from tests.reliability import devices as compared
from tests.reliability import measurement
from tests.reliability.page import PAGE, text

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.project.test_faults" name="test_killed_it_goes_on[50]" time="120.5">
<properties><property name="tries" value="50"/><property name="result" value="all the same"/></properties></testcase>
<testcase classname="tests.project.test_faults" name="test_broken[50]" time="1"><failure message="no"/></testcase>
<testcase classname="tests.project.test_faults" name="test_absent[50]" time="0"><skipped/></testcase>
<testcase classname="" name="tests.execution.test_ray_engine" time="0"><skipped/></testcase>
</testsuite></testsuites>"""


def test_page_shows_stored_results() -> None:
    assert PAGE.read_text() == text()


def test_nightly_tests_are_shown_with_properties(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    found = list(measurement.tests(tmp_path / "junit.xml"))
    assert [each["outcome"] for each in found] == ["passed", "failed", "skipped"]
    store("nightly", {"tests": [{**each, "versions": {"python": "3"}} for each in found]}, tmp_path)
    page = text(tmp_path)
    assert "| killed it goes on | 50 | all the same | 2 min | `tests/project/test_faults.py` |" in page
    assert "| broken | - | **failed** |" in page
    assert "| absent | - | **skipped** |" in page
    assert "With python 3." in page


def test_other_tests_keep_their_nightly_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str | Path) -> None:
        *_, option, file = map(str, arguments)
        assert file == "tests/project/test_faults.py"
        Path(option.removeprefix("--junitxml=")).write_text(JUNIT)

    monkeypatch.setattr(measurement, "run", run)
    old = {"outcome": "passed", "seconds": 1.0, "versions": {"python": "2"}}
    names = {"test_faults": "test_broken[50]", "test_other": "test_old"}
    before = [{**old, "file": f"tests/project/{file}.py", "test": test} for file, test in names.items()]
    store("nightly", {"tests": before}, tmp_path)
    store("nightly", measurement.nightly(["tests/project/test_faults.py"], tmp_path), tmp_path)
    page = text(tmp_path)
    assert "| killed it goes on | 50 |" in page
    assert page.count("| old | - |") == 1
    assert page.count("| broken |") == 1
    assert "With python 2." in page
    assert "torch" in page


def test_devices_are_compared_test_by_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str | Path) -> None:
        options = dict(str(each).partition("=")[::2] for each in arguments)
        Path(options["--junitxml"]).write_text(JUNIT)
        verdict = "NOT_MASKED" if "tests.devices.registered" in options else "MASKED"
        audit = {"test": "tests/project/test_faults.py::test_killed_it_goes_on[50]", "verdict": verdict}
        Path(options["--gradmask-json"]).write_text(json.dumps({"audits": [audit]}))

    monkeypatch.setattr(compared, "run", run)
    before = [
        {"test": f"audits/{name}.py::test_old", "cpu": "passed", "pretend": "passed", "versions": {"torch": "2"}}
        for name in ("test_old", "test_faults")
    ]
    store("devices", {"audits": before}, tmp_path)
    record = compared.devices(["audits"], tmp_path)
    assert [(each["cpu"], each["pretend"]) for each in record["audits"] if "killed" in each["test"]] == [
        ("passed MASKED", "passed NOT_MASKED")
    ]
    assert len(record["audits"]) == 5, "others are kept where files are named"
    assert len(compared.devices((), tmp_path)["audits"]) == 3
    store("devices", record, tmp_path)
    page = text(tmp_path)
    assert f"**{len(record['audits']) - 1} of {len(record['audits'])} tests**" in page
    assert "| passed MASKED | passed NOT_MASKED |" in page


def test_mutants_are_counted_module_by_module(tmp_path: Path) -> None:
    (tmp_path / "pytest_gradmask").mkdir()
    fates = {"a": 1, "b": 0, "c": 36, "d": None, "e": 33}
    (tmp_path / "pytest_gradmask" / "stats.py.meta").write_text(json.dumps({"exit_code_by_key": fates}))
    (tmp_path / "pytest_gradmask" / "cache.py.meta").write_text(json.dumps({"exit_code_by_key": {}}))
    found = measurement.mutants_in(tmp_path)
    assert found["alive"] == ["b", "e"]
    store("mutants", found | {"versions": {}}, tmp_path)
    page = text(tmp_path)
    assert "| `stats.py` | 4 | 2 | 50% |\n| all | 4 | 2 | **50.0%** |" in page
    assert "1 mutants were not tested" in page


def test_coverage_and_versions_have_their_sections(tmp_path: Path) -> None:
    modules = {f"pytest_gradmask/{name}.py": {"percent": percent} for name, percent in {"a": 9, "b": 8}.items()}
    numbers = {"covered_statements": 1, "statements": 2, "covered_branches": 3, "branches": 4, "percent": 95.5}
    store("coverage", {**numbers, "modules": modules, "versions": {}}, tmp_path)
    environment = {"versions": {"python": "3.11", "torch": "2.6"}, "result": "9 passed"}
    store("versions", {"environments": {"lowest": environment}}, tmp_path)
    page = text(tmp_path)
    assert "**95.5 %**. The least covered: `b.py` 8 %, `a.py` 9 %." in page
    assert "| lowest | 3.11 | 2.6 | 9 passed |" in page


def test_command_measures_and_writes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in command.MEASUREMENTS:
        monkeypatch.setitem(command.MEASUREMENTS, name, dict)
    monkeypatch.setattr(command, "store", lambda name, *_: done.append(name))
    monkeypatch.setattr(command, "write", lambda: done.append("page"))
    assert command.main(["coverage", "page"]) == 0
    assert command.main([]) == 0
    assert done == ["coverage", "page", "nightly", "devices", "coverage", "mutants", "versions", "page"]
    monkeypatch.setitem(command.MEASUREMENTS, "nightly", lambda: {"tests": [{"outcome": "failed"}]})
    assert command.main(["nightly"]) == 1
    for other, status in (("passed MASKED", 0), ("passed NOT_MASKED", 1)):
        monkeypatch.setitem(
            command.MEASUREMENTS, "devices",
            lambda other=other: {"audits": [{"cpu": "passed MASKED", "pretend": other}]},
        )  # fmt: skip
        assert command.main(["devices"]) == status
    with pytest.raises(SystemExit):
        command.main(["nothing"])
