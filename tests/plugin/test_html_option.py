"""``--gradmask-html``: from tests to a page, with and without workers, and what is wrong before any test runs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.test_reporting import DEFENSES, RUN
from tests.report.report_toys import timeless_json

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

# Tests that run pytest inside this process unload what it imports. Modules imported here stay, and can be patched.
import contourpy  # noqa: F401
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401

import pytest_gradmask.report.html  # noqa: F401
from pytest_gradmask.report.evidence import collection

TESTS = (
    DEFENSES
    + """
    from pytest_gradmask import DefenseError

    def test_masked(gradmask):
        model = masked()
        assert_gradient_masking(gradmask.audit(model, *batch(model)))

    def test_train_mode(gradmask):
        model = linear()
        images, labels = batch(model)
        with pytest.raises(DefenseError, match="train mode"):
            gradmask.audit(model.train(), images, labels)

    @pytest.mark.gradmask
    def test_transfer(transfer_matrix):
        torch.manual_seed(1)
        other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).eval()
        images, labels = batch(linear(), 40)
        same = other(images).argmax(1) == labels
        transfer_matrix({"one": linear(), "other": other}, images[same], labels[same])
"""
)

ONE = (
    DEFENSES
    + """
    def test_masked(gradmask):
        model = masked()
        audit = gradmask.audit(model, *batch(model))
        assert_gradient_masking(audit)
        assert audit.seconds > 0
"""
)


def timeless(page: str) -> str:
    """A page without its times and seconds, and without the command, which is another."""
    page = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:+]+( UTC)?", "", page)
    page = re.sub(r"(<th scope=\"row\">(seconds[^<]*|command)</th><td[^>]*>)[^<]*", r"\1", page)
    return re.sub(r"<td class=\"n\" data-label=\"Seconds\">\d+\.\d</td>\n</tr>", "", page)


def figures(file: Path) -> list[dict[str, Any]]:
    return [timeless_json(audit) for audit in json.loads(file.read_text())["audits"]]


@pytest.mark.longer
def test_workers_do_not_change_the_page(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=TESTS)
    for name, more in (("plain", ("-p", "no:xdist")), ("spread", ("-n2",))):
        result = pytester.runpytest(*RUN, f"--gradmask-html={name}.html", f"--gradmask-json={name}.json", *more)
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines([f"written to {name}.html"])
    plain, spread = ((pytester.path / f"{name}.html").read_text() for name in ("plain", "spread"))
    for text in (
        "Sequential: ",
        "MASKED (masking gap of",
        "train mode",
        "Transfer matrices of other tests",
        "Quality of the gradient",
    ):
        assert text in plain
    assert plain.count("data:image/png") == 4 * 4
    assert "could not be" not in plain
    assert timeless(plain) == timeless(spread)
    assert timeless(plain) != plain
    content = json.loads((pytester.path / "plain.json").read_text())
    assert set(content) == {"version", "complete", "exit_status", "not_run", "provenance", "audits"}
    assert "outcomes" not in str(content)


@pytest.mark.longer
def test_without_the_option_no_evidence_is_collected(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=ONE)
    pytester.runpytest(*RUN, "--gradmask-html=out.html", "--gradmask-json=with.json").assert_outcomes(passed=1)
    assert "could not be" not in (pytester.path / "out.html").read_text()

    def never(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError(f"collected from {arguments} and {keywords}")

    monkeypatch.setattr(collection, "collect_evidence", never)
    pytester.runpytest(*RUN, "--gradmask-json=without.json").assert_outcomes(passed=1)
    assert figures(pytester.path / "with.json") == figures(pytester.path / "without.json")


def test_errors_in_evidence_fail_no_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **keywords: Any) -> None:
        raise MemoryError(f"no room for {len(arguments)} and {len(keywords)}")

    monkeypatch.setattr(collection, "bench", broken)
    pytester.makepyfile(test_it=ONE)
    pytester.runpytest(*RUN, "--gradmask-html=out.html").assert_outcomes(passed=1)
    page = (pytester.path / "out.html").read_text()
    assert "MASKED (masking gap of" in page
    assert page.count("could not be made: MemoryError: no room") == 3


def test_an_interrupted_run_without_audits_has_a_page(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_interrupt():\n    raise KeyboardInterrupt")
    pytester.inline_run(*RUN, "--gradmask-html=out.html", no_reraise_ctrlc=True)
    page = (pytester.path / "out.html").read_text()
    assert "The run is not complete" in page
    assert "No audit ran to its end" in page


def test_no_page_without_audits(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=ONE)
    pytester.makeini("[pytest]\ngradmask_html = out.html")
    pytester.runpytest().assert_outcomes(skipped=1)
    assert not (pytester.path / "out.html").exists()


@pytest.mark.parametrize("name", ["jinja2", "markdown_it", "matplotlib"])
def test_a_missing_package_is_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *more: None if asked == name else find(asked, *more))
    pytester.makepyfile(test_it=ONE)
    result = pytester.runpytest("--gradmask", "--gradmask-html=out.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-html needs {name};*pip install 'pytest-gradmask?report?'*"])


@pytest.mark.parametrize("option", ["html", "json"])
def test_an_unwritable_directory_is_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def refused(dir: Path) -> None:  # noqa: A002
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("pytest_gradmask.plugin.options.tempfile.TemporaryFile", refused)
    pytester.makepyfile(test_it=ONE)
    result = pytester.runpytest(f"--gradmask-{option}=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-{option}*'out'*cannot be written to*Permission denied*"])


def test_one_file_for_both_reports_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=ONE)
    result = pytester.runpytest("--gradmask", "--gradmask-html=out", "--gradmask-json=./out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradmask-html=*out: is the file of --gradmask-json, too; use two*"])
