"""Masks that a test expects are shown as expected, audits that raise as errors, and reasons stand beside verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_gradmask.report.github import step_summary
from pytest_gradmask.report.records import AuditRecord
from tests.plugin.audit_toys import CONFTEST, RUN
from tests.report.report_toys import plain_audit, plain_run

TESTS = """
    import pytest
    from pytest_gradmask import assert_gradient_masking, assert_no_gradient_masking

    def test_expected(audited):
        assert_gradient_masking(audited("MASKED"))

    def test_not_expected(audited):
        assert_no_gradient_masking(audited("MASKED"))

    def test_wrong(audited):
        assert_gradient_masking(audited("NOT_MASKED"))

    def test_fine(audited):
        assert_no_gradient_masking(audited("NOT_MASKED"))

    @pytest.fixture
    def audit(audited):
        audited("NOT_MASKED")
        return audited("MASKED")

    def test_of_a_fixture(audit):
        assert_gradient_masking(audit)

    def test_raises(audited):
        audited("an error")

    def test_unclear(audited):
        assert_no_gradient_masking(audited("INCONCLUSIVE"))
"""
EXPECTED_ALONE = """
    from pytest_gradmask import assert_gradient_masking

    def test_expected(audited):
        assert_gradient_masking(audited("MASKED"))
"""


def run(pytester: pytest.Pytester, *options: str, code: str = TESTS) -> tuple[pytest.RunResult, list[dict[str, Any]]]:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=code)
    result = pytester.runpytest(*RUN[:3], "--gradmask-json=out.json", *options)
    return result, json.loads((pytester.path / "out.json").read_text())["audits"]


@pytest.mark.longer
@pytest.mark.parametrize("options", [("-p", "no:xdist"), ("-n2",)])
def test_the_json_says_what_was_expected(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    if "-n2" in options:
        pytest.importorskip("xdist")
    _, audits = run(pytester, *options)
    found = [(a["test"].partition("::test_")[2], a["verdict"], a["expected"], a["error"]) for a in audits]
    assert found == [
        ("expected", "MASKED", "MASKED", None),
        ("fine", "NOT_MASKED", "NOT_MASKED", None),
        ("not_expected", "MASKED", "NOT_MASKED", None),
        ("of_a_fixture", "NOT_MASKED", None, None),
        ("of_a_fixture", "MASKED", "MASKED", None),
        ("raises", "INCONCLUSIVE", None, "InputError"),
        ("unclear", "INCONCLUSIVE", "NOT_MASKED", None),
        ("wrong", "NOT_MASKED", "MASKED", None),
    ]


def test_the_summary_shows_it_worst_first_and_with_reasons(pytester: pytest.Pytester) -> None:
    result, _ = run(pytester, "-p", "no:xdist")
    result.stdout.fnmatch_lines(
        [
            "MASKED  *test_not_expected",
            "ERROR  *test_raises",
            "  the audit raised InputError: images: there are none for an error",
            "INCONCLUSIVE  *test_unclear",
            "  it is what it is",
            "MASKED as expected  *test_expected",
            "MASKED as expected  *test_of_a_fixture",
            "NOT_MASKED  *test_fine",
            "8 audits: 1 MASKED, 1 ERROR, 1 INCONCLUSIVE, 2 MASKED as expected, 3 NOT_MASKED",
        ],
    )


def test_expected_masks_are_green(pytester: pytest.Pytester) -> None:
    result, _ = run(pytester, "-p", "no:xdist", "--color=yes")
    coloured = {line for line in result.outlines if "\x1b[" in line}
    assert any(line.startswith("\x1b[32mMASKED as expected") for line in coloured)
    assert any(line.startswith("\x1b[31mMASKED  ") for line in coloured)
    assert any(line.startswith("\x1b[31mERROR  ") for line in coloured)
    assert any(line.startswith("\x1b[33mINCONCLUSIVE  ") for line in coloured)


@pytest.mark.parametrize(
    ("code", "message", "color"),
    [(EXPECTED_ALONE, "MASKED as expected", "brightgreen"), (TESTS, "MASKED: 1 of 8 audits", "red")],
)
def test_the_badge(pytester: pytest.Pytester, code: str, message: str, color: str) -> None:
    run(pytester, "-p", "no:xdist", "--gradmask-badge=badge.json", code=code)
    badge = json.loads((pytester.path / "badge.json").read_text())
    assert (badge["message"], badge["color"]) == (message, color)


def test_the_html_report() -> None:
    pytest.importorskip("matplotlib")
    from pytest_gradmask.report.html import render

    audits = [plain_audit(verdict="MASKED", expected=expected) for expected in ("MASKED", "NOT_MASKED", None)]
    run = plain_run(*audits)
    page = render([AuditRecord(audit=audit, evidence={}) for audit in audits], [], run["provenance"])
    assert page.count('class="word MASKED-as-expected"') == 4  # the count, the card, the row, the title
    assert page.count('class="verdict MASKED-as-expected"') == 1
    assert page.count('class="verdict MASKED"') == 2


def test_the_step_summary() -> None:
    text = step_summary(plain_run(plain_audit(verdict="MASKED", expected="MASKED"), plain_audit(verdict="MASKED")))
    assert "1 MASKED, 1 MASKED as expected." in text
    assert text.count("| MASKED as expected |") == 1
