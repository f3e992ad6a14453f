"""``--gradmask-deadline``: the audits of a run share its time, and what is open when it is over does not pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_gradmask.plugin.deadline import RunDeadline
from pytest_gradmask.plugin.options import OPTIONS
from tests.plugin.test_reporting import DEFENSES, RUN, read

AUDITS = (
    DEFENSES
    + """
    def test_first(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))

    def test_second(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))
"""
)


@pytest.mark.parametrize("how", ["option", "ini value"])
def test_a_run_without_time_passes_nothing(pytester: pytest.Pytester, how: str) -> None:
    pytester.makepyfile(test_it=AUDITS)
    options = ["--gradmask-deadline=0.001s"] if how == "option" else []
    pytester.makeini("[pytest]\ngradmask_deadline = " + ("1h" if options else "0.001"))
    result = pytester.runpytest(*RUN, *options, "--gradmask-json=out.json")
    result.assert_outcomes(failed=2)
    for audit in read(pytester.path / "out.json"):
        assert audit["verdict"] == "INCONCLUSIVE"
        assert "deadline" in audit["reasons"][0]


def test_a_run_with_enough_time_is_as_without(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=AUDITS)
    pytester.runpytest(*RUN, "--gradmask-deadline=10m").assert_outcomes(passed=2)


def test_time_that_one_audit_leaves_is_for_the_others() -> None:
    now = 100.0
    deadline = RunDeadline(60, 1, lambda: now)
    items = [SimpleNamespace(nodeid=name, fixturenames=["gradmask"], get_closest_marker=bool) for name in "abc"]
    deadline.pytest_collection_finish(cast(Any, SimpleNamespace(items=items)))
    assert deadline.share() == 20
    now += 6
    deadline.pytest_runtest_logfinish("a")
    assert deadline.share() == 27
    deadline.pytest_runtest_logfinish("b")
    deadline.pytest_runtest_logfinish("no audit")
    assert deadline.share() == 54
    now += 100
    assert 0 < deadline.share() < 0.01, "an audit still runs, and says why it has no verdict"


def test_workers_share_the_tests() -> None:
    deadline = RunDeadline(60, 2, lambda: 0.0)
    items = [SimpleNamespace(nodeid=name, fixturenames=["gradmask"], get_closest_marker=bool) for name in "abcd"]
    deadline.pytest_collection_finish(cast(Any, SimpleNamespace(items=items)))
    assert deadline.share() == 30


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_times(text: str, seconds: float) -> None:
    [option] = [option for option in OPTIONS if option.name == "deadline"]
    assert option.parse(text) == seconds


@pytest.mark.parametrize("how", ["option", "ini value"])
def test_attacks_run_in_the_chosen_precision(pytester: pytest.Pytester, how: str) -> None:
    pytester.makepyfile(test_it=AUDITS)
    options = ["--gradmask-precision=bfloat16"] if how == "option" else []
    pytester.makeini("[pytest]\ngradmask_precision = " + ("own" if options else "bfloat16"))
    pytester.runpytest(*RUN, *options, "--gradmask-json=out.json").assert_outcomes(passed=2)
    assert {audit["provenance"]["precision"] for audit in read(pytester.path / "out.json")} == {"bfloat16"}
