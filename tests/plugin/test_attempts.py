"""Attempts as users of the plugin meet them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin.test_reporting import DEFENSES, read

RUN = ("--gradmask", "--gradmask-device=cpu", "--gradmask-json=out.json")

TESTS = (
    DEFENSES
    + """
    import pytest

    def test_bare(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))

    @pytest.mark.gradmask(margin=0.3)
    def test_marked(gradmask):
        model = linear()
        gradmask.audit(model, *batch(model))
"""
)


def run(pytester: pytest.Pytester, *options: str, field: str = "attempt") -> tuple[list[int], pytest.RunResult]:
    """A field of each audit."""
    result = pytester.runpytest(*RUN, *options)
    return [audit[field] for audit in read(pytester.path / "out.json")], result


@pytest.fixture(autouse=True)
def tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)


@pytest.mark.longer
def test_audits_with_another_seed_are_counted_and_change_nothing(pytester: pytest.Pytester) -> None:
    assert run(pytester, field="earlier_audits")[0] == [0, 0]
    assert run(pytester, field="earlier_audits")[0] == [0, 0]
    alone = run(pytester, "--gradmask-seed=1", "--gradmask-no-cache", field="gap")[0]
    gaps, result = run(pytester, "--gradmask-seed=1", field="gap")
    assert gaps == alone
    result.assert_outcomes(passed=2)
    assert run(pytester, "--gradmask-seed=1", field="earlier_audits")[0] == [1, 1]
    assert run(pytester, "--gradmask-seed=1", field="attempt")[0] == [1, 1]


@pytest.mark.longer
def test_failure_says_that_it_was_not_the_first_audit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.replace("batch(model)", "batch(model, 10)", 1))
    run(pytester)
    _, result = run(pytester, "--gradmask-seed=1")
    result.stdout.fnmatch_lines(["*not the first: the cache knows 1 earlier audits of this defense*"])
    _, result = run(pytester, "--gradmask-seed=1", "--gradmask-attempt=2")
    assert "not the first" not in result.stdout.str()


@pytest.mark.longer
def test_tests_of_one_run_do_not_count_each_other(pytester: pytest.Pytester) -> None:
    body = """
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_seeds(gradmask, seed):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model, 20 + seed)))
"""
    pytester.makepyfile(test_it=TESTS + body)
    pytest.importorskip("xdist")
    earlier, result = run(pytester, "-n2", field="earlier_audits")
    assert earlier == [0] * 5
    result.assert_outcomes(passed=5)


@pytest.mark.longer
def test_audits_in_a_loop_count(pytester: pytest.Pytester) -> None:
    body = """
    def test_until_it_passes(gradmask):
        model = linear()
        for count in (20, 21, 22):
            gradmask.audit(model, *batch(model, count))
"""
    pytester.makepyfile(test_it=DEFENSES + body)
    assert run(pytester, field="earlier_audits")[0] == [0, 1, 2]


@pytest.mark.longer
def test_the_option_says_how_many_there_have_been(pytester: pytest.Pytester) -> None:
    attempts, result = run(pytester, "--gradmask-attempt=2", "--gradmask-no-cache")
    assert attempts == [2, 2]
    result.stdout.fnmatch_lines(["gradmask: budget=smoke, *, seed=0, attempt=2"])
    assert "attempt=" not in run(pytester, "--gradmask-no-cache")[1].stdout.str()


def test_the_ini_value_and_the_marker_do_the_same(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_attempt = 3")
    pytester.makepyfile(test_it=TESTS.replace("margin=0.3", "margin=0.3, attempt=5"))
    assert run(pytester, "--gradmask-no-cache")[0] == [3, 5]


def test_without_attempts_the_message_says_how_to_go_on(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.replace("batch(model)", "batch(model, 10)", 1))
    _, result = run(pytester, "--gradmask-no-cache")
    result.stdout.fnmatch_lines(["*about 36*", "*next: pytest *--gradmask-attempt=2  # with more images"])
    assert "attempt 1" not in result.stdout.str()


def test_an_audit_that_raised_has_no_attempt(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.replace("gradmask.audit(model,", "gradmask.audit(model.train(),"))
    attempts: list[Any] = run(pytester)[0]
    assert attempts == [None, None]
