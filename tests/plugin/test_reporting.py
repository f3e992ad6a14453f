"""A user's audits from test to report: verdicts, failure messages, JSON, with and without xdist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.audit_toys import CONFTEST
from tests.plugin.audit_toys import RUN as QUICK_RUN
from tests.report.report_toys import timeless_json

#: A linear model, alone and behind a front end that kills the gradient. Its predictions are the labels.
DEFENSES = """
    import pytest
    import torch
    from torch import nn
    from pytest_gradmask import assert_gradient_masking, assert_no_gradient_masking

    class Rounded(nn.Module):
        def forward(self, images):
            return (images * 31).round() / 31

    def linear():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).eval()

    def batch(model, count=20):
        images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return images, model(images).argmax(1)

    def masked():
        return nn.Sequential(Rounded(), linear()).eval()
"""

TESTS = (
    DEFENSES
    + """
    def test_bare(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))

    def test_masked(gradmask):
        model = masked()
        assert_gradient_masking(gradmask.audit(model, *batch(model)))
"""
)

RUN = ("--gradmask", "--gradmask-device=cpu", "--gradmask-no-cache")


def read(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["audits"]  # type: ignore[no-any-return]


@pytest.mark.longer
def test_verdicts_reach_the_terminal_and_the_json_file(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*gradient masking audits*", "verdict*clean*", "MASKED*test_masked", "NOT_MASKED*test_bare", "written to *"]
    )
    bare, masked = read(pytester.path / "out.json")
    assert (bare["test"], bare["verdict"]) == ("test_it.py::test_bare", "NOT_MASKED")
    assert (masked["test"], masked["verdict"]) == ("test_it.py::test_masked", "MASKED")
    assert masked["bypassed"] == ["0"]
    assert {finding["id"] for finding in masked["findings"]} >= {"zero-gradient"}
    assert masked["gap"]["low"] > 0
    assert masked["gap"]["low"] <= masked["gap"]["estimate"] <= masked["gap"]["high"]
    assert masked["clean_accuracy"]["count"] == 20
    bpda = masked["robust_accuracy"]["bpda-operations"]
    assert bpda["kind"] == "adaptive"
    assert bpda["value"] == bpda["count"] / 20 <= 0.2
    assert bpda["low"] <= bpda["value"] <= bpda["high"]
    assert bpda["forwards"] > 0
    assert bpda["backwards"] > 0
    assert masked["provenance"]["threat"]["norm"] == "Linf"
    assert masked["provenance"]["versions"]["torch"]
    assert masked["seconds"] > 0
    assert masked["reasons"]
    run = json.loads((pytester.path / "out.json").read_text())
    assert run["version"] == 2
    assert run["provenance"]["settings"]["budget"] == "smoke"


@pytest.mark.longer
@pytest.mark.parametrize("workers", [0, 2])
def test_xdist_gives_the_same_json(pytester: pytest.Pytester, workers: int) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=TESTS)
    plain = pytester.runpytest(*RUN, "--gradmask-json=plain.json", "-p", "no:xdist")
    plain.assert_outcomes(passed=2)
    spread = pytester.runpytest(*RUN, "--gradmask-json=spread.json", f"-n{workers}")
    spread.assert_outcomes(passed=2)
    spread.stdout.fnmatch_lines(["MASKED*test_masked"])

    def figures(name: str) -> list[dict[str, Any]]:
        return [timeless_json(audit) for audit in read(pytester.path / name)]

    assert figures("plain.json") == figures("spread.json")


def test_a_failure_message_explains(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        DEFENSES
        + """
    def test_my_defense(gradmask):
        model = masked()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))
"""
    )
    result = pytester.runpytest(*RUN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: MASKED: Sequential, gap *",
            "*Expected no gradient masking. At eps 8/255 (Linf) on 20 images with the",
            "*hidden by: `torch.round` at test_a_failure_message_explains.py:*",
            "*report instead: * (all attacks; most by*",
            "*attack*kind*given*broken*alone  accuracy, at most",
            "*apgd-ce*gradient*",
            "*bpda*adaptive*",
            "*placebo*placebo*",
            "*Skipped early, as the verdict was decided without them: *",
            "*adaptive attacks break*",
            "*finding zero-gradient:*",
            '*next: Defense(model, bypass=[[]"0"])*',
            "*explain: pytest --gradmask-explain=hidden-gradient",
            "*reproduce: pytest test_a_failure_message_explains.py::test_my_defense --gradmask --gradmask-device=cpu",
            "FAILED *::test_my_defense - MASKED: Sequenti*",
        ]
    )


def test_an_inconclusive_audit_fails_both_assertions(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        DEFENSES
        + """
    @pytest.mark.parametrize("check", [assert_no_gradient_masking, assert_gradient_masking])
    def test_one_image(gradmask, check):
        model = linear()
        check(gradmask.audit(model, *batch(model, 1)))
"""
    )
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*about * images decide*", "*This does not pass*", "*next: pytest *--gradmask-attempt=2 *"]
    )
    assert {audit["verdict"] for audit in read(pytester.path / "out.json")} == {"INCONCLUSIVE"}


def test_an_audit_that_raises_is_inconclusive(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        DEFENSES
        + """
    def test_train_mode(gradmask):
        model = linear()
        images, labels = batch(model)
        gradmask.audit(model.train(), images, labels)
"""
    )
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*DefenseError*train mode*model.eval()*"])
    (audit,) = read(pytester.path / "out.json")
    assert audit["verdict"] == "INCONCLUSIVE"
    assert "train mode" in audit["reasons"][0]


@pytest.mark.longer
def test_an_interrupted_run_still_writes_what_it_has(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        TESTS
        + """
    def test_zz_interrupt():
        raise KeyboardInterrupt
"""
    )
    result = pytester.runpytest_subprocess(*RUN, "--gradmask-json=out.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert len(read(pytester.path / "out.json")) == 2
    run = json.loads((pytester.path / "out.json").read_text())
    assert (run["complete"], run["exit_status"], run["not_run"]) == (False, 2, [])


def test_no_json_without_audits(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    pytester.runpytest("--gradmask-json=out.json").assert_outcomes(skipped=2)
    assert not (pytester.path / "out.json").exists()


@pytest.mark.parametrize("terminal", [(), ("-p", "no:terminal")], ids=["with a terminal", "without"])
def test_files_need_no_reporter_of_pytest(pytester: pytest.Pytester, terminal: tuple[str, ...]) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_it(audited): assert audited('MASKED').verdict.name == 'NOT_MASKED'")
    result = pytester.runpytest(*QUICK_RUN, *terminal, "--gradmask-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [audit["verdict"] for audit in read(pytester.path / "out.json")] == ["MASKED"]
    assert ("1 failed" in result.outlines[-1]) if not terminal else not result.outlines
