"""Continuous integration: partial runs, JUnit, GitHub Actions, badges, baselines."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

RUN = ("--gradmask", "--gradmask-device=cpu", "-p", "no:cacheprovider")

#: Tests that leave audits without auditing.
IMPORTS = """
import pytest
from tests.report.report_toys import record
"""

MIXED = (
    IMPORTS
    + """
def test_masked(gradmask):
    record(gradmask, "MASKED", defense="<b>|x|</b>")
    assert 0, "no pass"

def test_unclear(gradmask):
    record(gradmask, "INCONCLUSIVE", reasons=["50 % of, all: it\\nis unclear"])

def test_fine(gradmask):
    record(gradmask)
    record(gradmask, robust=[1, 0, 0, 0])
"""
)

FINE = (
    IMPORTS
    + """
@pytest.mark.parametrize("survivors", [30], ids=["x"])
def test_one(gradmask, survivors):
    record(gradmask, robust=[1] * survivors + [0] * (40 - survivors))

def test_two(gradmask):
    record(gradmask)
"""
)

with_workers = pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["plain", "xdist"])


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def run(pytester: pytest.Pytester, *options: str, code: str | None = None) -> pytest.RunResult:
    if code is not None:
        pytester.makepyfile(test_it=code)
    if any(option.startswith("-n") for option in options):
        pytest.importorskip("xdist")
    return pytester.runpytest(*RUN, *options)


class TestPartialRuns:
    ORDER = (
        IMPORTS
        + """
def test_first(gradmask):
    record(gradmask)

def test_stop(gradmask):
    record(gradmask, "INCONCLUSIVE")
    {stop}

def test_later(gradmask):
    record(gradmask)

def test_no_audit():
    pass
"""
    )

    @pytest.mark.parametrize(
        ("stop", "options", "status", "ran", "not_run"),
        [
            pytest.param("pytest.exit('enough', 7)", (), 7, 2, ["test_stop", "test_later"], id="exit"),
            pytest.param("assert 0", ("-x",), 1, 2, ["test_later"], id="first failure"),
            pytest.param("assert 0", ("--maxfail=1",), 1, 2, ["test_later"], id="maxfail"),
            pytest.param("assert 0", (), 1, 3, [], id="failed only"),
            pytest.param("pass", (), 0, 3, [], id="complete"),
            pytest.param("pytest.skip('no')", (), 0, 3, [], id="skipped"),
        ],
    )
    def test_a_partial_run_is_written(
        self,
        pytester: pytest.Pytester,
        stop: str,
        options: tuple[str, ...],
        status: int,
        ran: int,
        not_run: list[str],
    ) -> None:
        result = run(pytester, "--gradmask-json=o.json", *options, code=self.ORDER.replace("{stop}", stop))
        assert result.ret == status
        found = read(pytester.path / "o.json")
        assert found["exit_status"] == status
        assert found["complete"] is not bool(not_run)
        assert found["not_run"] == [f"test_it.py::{test}" for test in not_run]
        assert len(found["audits"]) == ran

    def test_a_failed_fixture_leaves_its_test_not_run(self, pytester: pytest.Pytester) -> None:
        code = "import pytest\n@pytest.fixture\ndef broken(): 1 / 0\ndef test_it(broken, gradmask): pass"
        assert run(pytester, "--gradmask-json=o.json", code=code).ret == 1
        assert read(pytester.path / "o.json")["not_run"] == ["test_it.py::test_it"]

    def test_what_cannot_be_collected_is_named(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_broken="import nothing_like_this")
        options = ("--gradmask-json=o.json", "--continue-on-collection-errors")
        result = run(pytester, *options, code=FINE)
        assert result.ret == 1
        found = read(pytester.path / "o.json")
        assert (found["complete"], found["not_run"], len(found["audits"])) == (False, ["test_broken.py"], 2)
        result.stdout.fnmatch_lines(
            ["The run is not complete: *1 of the selected tests or files did not run (test_broken.py)."]
        )

    @pytest.mark.longer
    def test_a_crashed_workers_test_is_not_run(self, pytester: pytest.Pytester) -> None:
        code = self.ORDER.replace("{stop}", "import os; os._exit(1)")
        assert run(pytester, "-n1", "--gradmask-json=o.json", code=code).ret == 1
        found = read(pytester.path / "o.json")
        assert (found["complete"], found["not_run"]) == (False, ["test_it.py::test_stop"])
        assert [audit["test"][-5:] for audit in found["audits"]] == ["first", "later"]

    def test_tests_without_a_worker_are_not_run(self, pytester: pytest.Pytester) -> None:
        code = self.ORDER.replace("{stop}", "import os; os._exit(1)")
        result = run(pytester, "-n1", "--max-worker-restart=0", "--gradmask-json=o.json", code=code)
        assert result.ret != 0
        assert read(pytester.path / "o.json")["not_run"] == ["test_it.py::test_stop", "test_it.py::test_later"]

    def test_collecting_alone_writes_nothing(self, pytester: pytest.Pytester) -> None:
        assert run(pytester, "--gradmask-json=o.json", "--collect-only", code=FINE).ret == 0
        assert not (pytester.path / "o.json").exists()


class TestJUnit:
    @pytest.mark.longer
    @with_workers
    def test_every_test_has_its_audits_as_properties(self, pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
        run(pytester, "--junitxml=o.xml", *workers, code=MIXED)
        found = {
            case.attrib["name"]: {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
            for case in ElementTree.parse(pytester.path / "o.xml").iter("testcase")
        }
        assert found["test_masked"]["gradmask_verdict"] == "MASKED"
        assert found["test_masked"]["gradmask_defense"] == "<b>|x|</b>"
        fine = found["test_fine"]
        assert float(fine["gradmask_robust_accuracy"]) == 0.5
        assert float(fine["gradmask_2_robust_accuracy"]) == 0.25
        low, middle, high = (float(fine[f"gradmask_gap{end}"]) for end in ("_low", "", "_high"))
        assert (low, middle, high) == (-0.1, 0.0, 0.2)
        assert float(fine["gradmask_clean_accuracy_low"]) < float(fine["gradmask_clean_accuracy"]) == 1
        assert fine["gradmask_images"] == "4"

    def test_a_test_that_audits_nothing_has_none(self, pytester: pytest.Pytester) -> None:
        run(pytester, "--junitxml=o.xml", code="def test_plain(): pass")
        assert not list(ElementTree.parse(pytester.path / "o.xml").iter("property"))


class TestGitHub:
    @pytest.fixture(autouse=True)
    def actions(self, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))

    @pytest.mark.longer
    @with_workers
    def test_annotations_and_a_summary(self, pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
        (pytester.path / "summary.md").write_text("before\n")
        result = run(pytester, *workers, code=MIXED)
        folder = pytester.path.name
        commands = [line for line in result.outlines if line.startswith("::")]
        assert commands == [
            f"::warning file={folder}/test_it.py,line=8,title=INCONCLUSIVE%3A test_it.py%3A%3Atest_unclear"
            "::INCONCLUSIVE: toy: 50 %25 of, all: it%0Ais unclear",
            f"::error file={folder}/test_it.py,line=4,title=failed%3A test_it.py%3A%3Atest_masked"
            "::MASKED: <b>|x|</b>: it is MASKED",
        ]
        before, title, _, counts, _, header, rule, *rows = (pytester.path / "summary.md").read_text().splitlines()
        assert (before, title) == ("before", "## Gradient masking audits")
        assert counts == "1 MASKED, 1 INCONCLUSIVE, 2 NOT_MASKED."
        assert header.startswith("| verdict | clean |")
        assert set(rule) == {"|", "-", " "}
        assert [row.split()[1] for row in rows if row] == ["MASKED", "INCONCLUSIVE", "NOT_MASKED", "NOT_MASKED"]
        assert "&lt;b&gt;&#124;x&#124;&lt;/b&gt; |" in rows[0]
        assert {row.count("|") for row in rows if row} == {header.count("|")}

    @pytest.mark.longer
    def test_a_crashed_worker_is_an_error(self, pytester: pytest.Pytester) -> None:
        result = run(pytester, "-n1", code="import os\ndef test_crash(gradmask): os._exit(1)")
        title = "title=failed%3A test_it.py%3A%3Atest_crash::The test failed before it had audited anything."
        result.stdout.fnmatch_lines([f"::error file={pytester.path.name}/test_it.py,{title}"])
        assert "**The run is not complete**: pytest ended" in (pytester.path / "summary.md").read_text()

    def test_other_failures_have_no_annotation(self, pytester: pytest.Pytester) -> None:
        result = run(pytester, code="def test_other(): assert 0")
        assert not [line for line in result.outlines if line.startswith("::")]
        assert not (pytester.path / "summary.md").exists()

    def test_an_unwritable_summary_is_a_warning(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "no" / "such.md"))
        result = run(pytester, code=FINE)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["warning: the step summary cannot be written*such.md*"])

    def test_no_annotations_outside_of_actions(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("GITHUB_ACTIONS")
        result = run(pytester, code=MIXED)
        assert not [line for line in result.outlines if line.startswith("::")]
        assert not (pytester.path / "summary.md").exists()

    def test_worse_than_the_baseline_is_an_error(self, pytester: pytest.Pytester) -> None:
        run(pytester, "--gradmask-baseline=b.json", "--gradmask-baseline-update", code=FINE)
        result = run(pytester, "--gradmask-baseline=b.json", code=FINE.replace("[30]", "[3]"))
        location = f"file={pytester.path.name}/test_it.py,line=4"
        result.stdout.fnmatch_lines(
            [f"::error {location},title=worse%3A robust accuracy of *::baseline: 75.0%25, now: 7.5%25*"]
        )
        assert "worse " in (pytester.path / "summary.md").read_text()


class TestBadge:
    @pytest.mark.parametrize(
        ("code", "message", "color"),
        [
            pytest.param(MIXED, "MASKED: 1 of 4 audits", "red", id="masked"),
            pytest.param(FINE, "NOT_MASKED, robust accuracy 50.0%", "brightgreen", id="fine"),
            pytest.param("def test_plain(): pass", "no audits", "lightgrey", id="none"),
            pytest.param(FINE + "    pytest.exit('enough', 7)", "run not complete", "yellow", id="partial"),
            pytest.param(FINE + "    assert 0", "tests failed", "yellow", id="failed"),
            pytest.param(
                FINE + '    record(gradmask, "INCONCLUSIVE")', "INCONCLUSIVE: 1 of 3 audits", "yellow", id="unclear"
            ),
        ],
    )
    def test_it_shows_the_worst_verdict(self, pytester: pytest.Pytester, code: str, message: str, color: str) -> None:
        run(pytester, "--gradmask-badge=badge.json", code=code)
        assert read(pytester.path / "badge.json") == {
            "schemaVersion": 1, "label": "gradient masking", "message": message, "color": color,
        }  # fmt: skip

    def test_the_ini_value_names_the_file(self, pytester: pytest.Pytester) -> None:
        pytester.makeini("[pytest]\ngradmask_badge = badge.json")
        run(pytester, code=FINE)
        assert read(pytester.path / "badge.json")["color"] == "brightgreen"


class TestBaseline:
    FILE = "--gradmask-baseline=b.json"

    @pytest.fixture
    def baseline(self, pytester: pytest.Pytester) -> Path:
        result = run(pytester, self.FILE, "--gradmask-baseline-update", code=FINE)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["baseline written to b.json: 2 audits"])
        return pytester.path / "b.json"

    @pytest.mark.longer
    @with_workers
    def test_only_a_worse_run_fails(self, pytester: pytest.Pytester, baseline: Path, workers: tuple[str, ...]) -> None:
        assert len(read(baseline)["audits"]) == 2
        same = run(pytester, self.FILE, *workers)
        assert same.ret == 0
        same.stdout.fnmatch_lines(["Compared with b.json: passed", "6 same"])
        worse = run(pytester, self.FILE, "--gradmask-json=o.json", *workers, code=FINE.replace("[30]", "[3]"))
        assert worse.ret == 1
        worse.assert_outcomes(passed=2)
        worse.stdout.fnmatch_lines(
            ["Compared with b.json: FAILED", "worse *75.0%*7.5% of 40*test_one?x?", "1 worse, * same"]
        )
        assert read(pytester.path / "o.json")["exit_status"] == 1

    def test_the_ini_values_do_the_same(self, pytester: pytest.Pytester) -> None:
        pytester.makeini("[pytest]\ngradmask_baseline = b.json\ngradmask_baseline_update = true")
        run(pytester, code=FINE)
        pytester.makeini("[pytest]\ngradmask_baseline = b.json")
        assert run(pytester).ret == 0
        assert run(pytester, code=FINE.replace("[30]", "[3]")).ret == 1

    @pytest.mark.parametrize(
        ("options", "code", "status", "said"),
        [
            pytest.param(("-k", "test_one"), FINE, 0, "1 not run, 3 same", id="deselected"),
            pytest.param(("test_it.py::test_one",), FINE, 0, "1 not run, 3 same", id="not asked for"),
            pytest.param(("test_other.py",), FINE, 0, "2 not run", id="another file"),
            pytest.param(("--ignore=test_it.py",), FINE, 0, "2 not run", id="ignored"),
            pytest.param((), FINE.replace("_two", "_renamed"), 1, "1 missing, 1 new, 3 same", id="renamed"),
            pytest.param((), IMPORTS, 1, "2 missing", id="deleted"),
            pytest.param((),
                         FINE.replace("def test_two(gradmask):", "def test_two(gradmask):\n    pytest.skip('unused')"),
                         1, "1 missing, 3 same", id="skipped"),
            pytest.param(("-x",), FINE.replace("def test_two(gradmask):", "def test_two(gradmask):\n    assert 0"),
                         1, "1 missing, 3 same", id="failed first"),
            pytest.param((), FINE.replace("def test_two", "def test_stop(): pytest.exit('enough', 2)\n\ndef test_two"),
                         2, "1 not run, 3 same", id="partial"),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("baseline")
    def test_missing_audits_fail_the_run(
        self, pytester: pytest.Pytester, options: tuple[str, ...], code: str, status: int, said: str
    ) -> None:
        pytester.makepyfile(test_other="def test_plain(): pass")
        result = run(pytester, self.FILE, *options, code=code)
        assert result.ret == status
        result.stdout.fnmatch_lines([said])

    @pytest.mark.usefixtures("baseline")
    def test_audits_left_out_by_lf_are_not_missing(self, pytester: pytest.Pytester) -> None:
        again = (*RUN[:-2], self.FILE, "--lf")
        pytester.makepyfile(test_it=FINE + "    assert 0")
        assert pytester.runpytest(*again).ret == 1
        pytester.makepyfile(test_it=FINE)
        result = pytester.runpytest(*again)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["1 not run, 3 same"])

    @pytest.mark.usefixtures("baseline")
    def test_audits_of_a_deleted_file_are_missing(self, pytester: pytest.Pytester) -> None:
        (pytester.path / "test_it.py").unlink()
        pytester.makepyfile(test_other="def test_plain(): pass")
        result = run(pytester, self.FILE)
        assert result.ret == 1
        result.stdout.fnmatch_lines(["2 missing"])

    @pytest.mark.usefixtures("baseline")
    def test_other_settings_are_not_comparable(self, pytester: pytest.Pytester) -> None:
        result = run(
            pytester, self.FILE, code=FINE.replace("record(gradmask)", "record(gradmask, settings={'seed': 5})")
        )
        assert result.ret == 1
        result.stdout.fnmatch_lines(["not comparable  seed *0 * 5 *test_two"])

    @pytest.mark.parametrize(
        ("content", "expected"), [(None, "is not there"), ("{", "cannot be read"), ('{"version": 0}', "has version 0")]
    )
    def test_a_bad_baseline_is_a_usage_error(
        self, pytester: pytest.Pytester, content: str | None, expected: str
    ) -> None:
        if content is not None:
            (pytester.path / "b.json").write_text(content)
        result = run(pytester, self.FILE, code=FINE)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*--gradmask-baseline: b.json {expected}*--gradmask-baseline-update*"])
        result.stdout.no_fnmatch_line("*test_it.py*")

    def test_without_audits_the_file_may_be_missing(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(test_it=FINE)
        pytester.runpytest(self.FILE).assert_outcomes(skipped=2)

    @pytest.mark.parametrize(
        ("code", "why", "status"),
        [
            (FINE + "    pytest.exit('enough', 2)", "the run is not complete", 2),
            ("def test_plain(): pass", "no test has audited anything", 1),
        ],
    )
    def test_a_partial_run_is_no_new_baseline(
        self, pytester: pytest.Pytester, baseline: Path, code: str, why: str, status: int
    ) -> None:
        before = baseline.read_text()
        result = run(pytester, self.FILE, "--gradmask-baseline-update", code=code)
        assert result.ret == status
        result.stdout.fnmatch_lines([f"baseline b.json NOT written: {why}"])
        assert baseline.read_text() == before

    def test_the_update_needs_a_file(self, pytester: pytest.Pytester) -> None:
        result = run(pytester, "--gradmask-baseline-update", code=FINE)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--gradmask-baseline-update: say which file to write*"])

    @pytest.mark.parametrize("other", ["json", "badge"])
    def test_one_file_for_two_options_is_refused(self, pytester: pytest.Pytester, other: str) -> None:
        result = run(pytester, "--gradmask-baseline=./x.json", f"--gradmask-{other}=x.json", code=FINE)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*--gradmask-baseline=x.json: is the file of --gradmask-{other}, too*"])
