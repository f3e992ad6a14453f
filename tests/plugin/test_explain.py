"""``pytest --gradmask-explain``: the page of a finding, from the shell."""

from __future__ import annotations

import pytest

from pytest_gradmask.plugin.explain import explain_finding
from pytest_gradmask.report.explanations import explained


def test_it_prints_the_page_of_a_finding(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): assert False")
    result = pytester.runpytest("--gradmask-explain=zero-gradient")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["zero-gradient", "*Raised if:*", "*Explanation:*", "*Remedy:*"])
    assert "tiny-logits" not in result.outlines  # the next section
    result.stdout.no_fnmatch_line("*test session starts*")


def test_a_page_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in explained():
        lines = [line for line in explain_finding(name).splitlines() if not line.startswith(("|", "- ", "  "))]
        assert all(len(line) < 80 or " " not in line for line in lines), name
        assert not any("](" in line for line in lines), name
    assert "(https://arxiv.org/abs/1802.00420)" in explain_finding("zero-gradient")  # what leads out is kept


def test_every_finding_has_a_page() -> None:
    assert {"zero-gradient", "hidden-gradient", "stateful"} <= set(explained())
    assert not any(" " in name for name in explained())


@pytest.mark.parametrize(
    ("name", "hint"), [("zero-gradients", "did you mean zero-gradient*"), ("xyz", "findings are *, zero-gradient*")]
)
def test_an_unknown_finding_is_a_usage_error(pytester: pytest.Pytester, name: str, hint: str) -> None:
    result = pytester.runpytest(f"--gradmask-explain={name}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-explain={name}: there is no such finding; {hint}"])
