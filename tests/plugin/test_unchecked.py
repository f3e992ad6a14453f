"""A test that audits and asserts nothing would pass whatever the verdict is: a warning, or a failure where wanted."""

from __future__ import annotations

import pytest

from tests.plugin.audit_toys import CONFTEST, RUN

HEADER = """
    import unittest
    import pytest
    import torch
    from torch import nn
    from pytest_gradmask import (
        InputError, Verdict, assert_gradient_masking, assert_near_identity, assert_no_gradient_masking,
        assert_robust_accuracy,
    )

    ONE = torch.ones(1, 3, 2, 2)

    def helper(audit):
        other(audit)

    def other(audit):
        assert audit.verdict is Verdict.MASKED

    def load_checkpoint():
        pass
"""
#: Bodies of tests that assert something of their audit.
CHECKED = {
    "assertion": "assert_gradient_masking(audited('MASKED'))",
    "robust accuracy": "assert_robust_accuracy(audited('NOT_MASKED'), at_least=0.1)",
    "plain assert": "assert audited('MASKED').verdict is Verdict.MASKED",
    "helper of a helper": "helper(audited('MASKED'))",
    "unittest": "unittest.TestCase().assertEqual(audited('MASKED').verdict, Verdict.MASKED)",
    "raises": "pytest.raises(InputError, audited, 'nothing')",
    "each of two": "assert_gradient_masking(audited('MASKED')); assert_no_gradient_masking(audited('NOT_MASKED'))",
    "no audit": "pass",
}
UNCHECKED = {
    "nothing": "audited('MASKED')",
    "printed": "print(audited('MASKED').verdict)",
    "the first of two": "audited('MASKED'); assert_no_gradient_masking(audited('NOT_MASKED'))",
    "something else": "audited('MASKED'); assert_near_identity(nn.Identity(), ONE, atol=1)",
    "a checkpoint": "load_checkpoint(); audited('MASKED')",
}


def run(pytester: pytest.Pytester, body: str, *options: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(HEADER + f"\n    def test_it(audited):\n        {body}\n")
    return pytester.runpytest(*RUN, *options)


@pytest.mark.parametrize("body", CHECKED.values(), ids=CHECKED)
def test_a_test_that_asserts_something_passes(pytester: pytest.Pytester, body: str) -> None:
    run(pytester, body, "--gradmask-strict").assert_outcomes(passed=1, warnings=0)


@pytest.mark.parametrize("body", UNCHECKED.values(), ids=UNCHECKED)
def test_a_test_that_asserts_nothing_is_warned_of(pytester: pytest.Pytester, body: str) -> None:
    result = run(pytester, body)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*UncheckedAuditWarning: test_it audits MASKED and asserts nothing, so it passes whatever *"]
    )


def test_with_the_option_it_fails(pytester: pytest.Pytester) -> None:
    result = run(pytester, "audited('MASKED')", "--gradmask-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_it audits MASKED and asserts nothing*call assert_no_gradient_masking*"])


def test_the_ini_value_does_the_same(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ngradmask_strict = true")
    run(pytester, "audited('MASKED')").assert_outcomes(failed=1)
    run(pytester, "assert audited('MASKED').clean").assert_outcomes(passed=1)
