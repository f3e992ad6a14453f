"""SARIF for code scanning: results at the lines that hide a gradient."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_gradmask.report.sarif import sarif
from tests.plugin.audit_toys import CONFTEST, RUN
from tests.report.report_toys import plain_audit, plain_run

OPERATION = {"name": "torch.round", "file": "src/mine.py", "line": 14, "count": 1}


def results(*audits: dict[str, Any]) -> list[dict[str, Any]]:
    (run,) = sarif(plain_run(*audits))["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == sorted({r["ruleId"] for r in run["results"]})
    return list(run["results"])


def place(result: dict[str, Any]) -> tuple[str, int]:
    (location,) = result["locations"]
    physical = location["physicalLocation"]
    return physical["artifactLocation"]["uri"], physical["region"]["startLine"]


def test_a_mask_is_at_the_line_that_hides_the_gradient() -> None:
    (result,) = results(plain_audit(verdict="MASKED", operations=[OPERATION]))
    assert (result["ruleId"], result["level"]) == ("gradmask/MASKED", "error")
    assert place(result) == ("src/mine.py", 14)
    assert result["message"]["text"].startswith("torch.round hides the gradient. At eps 0.1")


def test_each_line_is_a_result() -> None:
    both = [OPERATION, {**OPERATION, "name": "torch.sign", "line": 20}]
    found = results(plain_audit(verdict="MASKED", operations=both))
    assert [place(result)[1] for result in found] == [14, 20]
    assert len({result["partialFingerprints"]["audit/v1"] for result in found}) == 2


def test_without_a_line_it_is_at_the_test() -> None:
    (result,) = results(plain_audit("tests/test_it.py::test_toy", "MASKED"))
    assert place(result) == ("tests/test_it.py", 1)


def test_only_what_is_not_as_it_should_be_is_a_result() -> None:
    assert results(plain_audit(), plain_audit(verdict="MASKED", expected="MASKED", operations=[OPERATION])) == []
    unclear, raised = results(plain_audit(verdict="INCONCLUSIVE"), plain_audit(verdict="INCONCLUSIVE", error="E"))
    assert (unclear["ruleId"], unclear["level"]) == ("gradmask/INCONCLUSIVE", "warning")
    assert (raised["ruleId"], raised["level"]) == ("gradmask/ERROR", "warning")


def test_a_result_stays_the_same_if_its_line_moves() -> None:
    before, after = (
        results(plain_audit(verdict="MASKED", operations=[{**OPERATION, "line": line}]))[0] for line in (14, 19)
    )
    assert before["partialFingerprints"] == after["partialFingerprints"]


def test_the_option_writes_the_file(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it="def test_it(audited): assert audited('MASKED').clean")
    pytester.runpytest(*RUN, "--gradmask-sarif=out.sarif").stdout.fnmatch_lines(["written to out.sarif"])
    log = json.loads((pytester.path / "out.sarif").read_text())
    assert log["version"] == "2.1.0"
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == ["gradmask/MASKED"]


def test_the_ini_value_writes_the_file(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\ngradmask_sarif = out.sarif")
    pytester.makepyfile(test_it="def test_it(audited): assert audited('NOT_MASKED').clean")
    pytester.runpytest(*RUN)
    assert json.loads((pytester.path / "out.sarif").read_text())["runs"][0]["results"] == []
