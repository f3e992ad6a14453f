"""Mistakes that would otherwise be silent: options that no test uses, and audits that nobody runs."""

from __future__ import annotations

import pytest

from tests.plugin.audit_toys import CONFTEST, RUN

MODEL = "--gradmask-model=resnet-standard"
TESTS = """
    def test_plain():
        pass

    def test_own_model(audited):
        assert audited("NOT_MASKED")
"""


@pytest.mark.parametrize(
    ("option", "fixture"),
    [(MODEL, "gradmask_model"), ("--gradmask-data=embedded", "eval_batch"), ("--gradmask-samples=3", "eval_batch")],
)
def test_an_option_that_no_test_uses_is_a_usage_error(pytester: pytest.Pytester, option: str, fixture: str) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option}: no selected test uses the fixture {fixture}*"])


@pytest.mark.parametrize(
    "test",
    [
        "def test_it(gradmask, {fixture}): pass",
        "@pytest.mark.usefixtures('{fixture}')\ndef test_it(): pass",
        "@pytest.fixture\ndef mine({fixture}): pass\ndef test_it(mine): pass",
        "def test_it(request): request.getfixturevalue('{fixture}')",
        "def images(request): return request.getfixturevalue('{fixture}')\ndef test_it(request): images(request)",
        "@pytest.fixture\ndef mine(request): request.getfixturevalue('{fixture}')\ndef test_it(mine): pass",
        "class TestIt:\n    def test_it(self, request): request.getfixturevalue('{fixture}')",
    ],
)
def test_an_option_that_a_test_uses_is_none(pytester: pytest.Pytester, test: str) -> None:
    pytester.makepyfile("import pytest\n" + test.format(fixture="eval_batch"))
    pytester.runpytest(*RUN, "--gradmask-samples=3").assert_outcomes(passed=1)


def test_fixture_named_in_other_code(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def images(request): request.getfixturevalue('eval_batch')\ndef test_it(gradmask): pass")
    assert pytester.runpytest(*RUN, "--gradmask-samples=3").ret == pytest.ExitCode.USAGE_ERROR


def test_only_selected_tests_count(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_a(eval_batch): pass\ndef test_b(): pass")
    assert pytester.runpytest(*RUN, "--gradmask-samples=3", "-k", "a").ret == 0
    assert pytester.runpytest(*RUN, "--gradmask-samples=3", "-k", "b").ret == pytest.ExitCode.USAGE_ERROR


def test_ini_values_are_for_all_runs(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_model = resnet-standard\ngradmask_samples = 3")
    pytester.makepyfile("def test_b(): pass")
    pytester.runpytest(*RUN).assert_outcomes(passed=1)


def test_a_run_without_the_option_says_how_to_run_audits(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest("-p", "no:xdist").stdout.fnmatch_lines(["1 audit was skipped: run pytest --gradmask"])
    pytester.runpytest(*RUN).stdout.no_fnmatch_line("*audit was skipped*")
    pytester.runpytest("-k", "plain").stdout.no_fnmatch_line("*audit was skipped*")
    (pytester.path / "test_more.py").write_text("def test_more(gradmask): pass")
    pytester.runpytest("-q").stdout.fnmatch_lines(["2 audits were skipped: run pytest --gradmask"])
