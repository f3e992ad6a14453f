"""Names and messages with bytes that are no text, or that a terminal obeys: every report is written, and shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradmask import Attack, Defense, InputError
from pytest_gradmask.printable import encodable_data, printable, printable_data
from tests.plugin.test_reporting import DEFENSES, RUN
from tests.toys import linear

TESTS = (
    DEFENSES
    + r"""
    import os
    from pytest_gradmask import Defense

    ODD = "odd \x1b[31m red \x00 \x07 \u202e \x9b1m"
    FILE = os.fsdecode(b"model-\xff\xfe.pth")

    class Raises(nn.Module):
        def __init__(self, text):
            super().__init__()
            self.text, self.model = text, linear()

        def forward(self, images):
            if images.requires_grad:
                raise RuntimeError(self.text)
            return self.model(images)

    @pytest.mark.parametrize("text", [ODD + FILE])
    def test_name(gradmask, text):
        model = masked()
        assert_gradient_masking(gradmask.audit(Defense(model, name=text), *batch(model)))

    @pytest.mark.parametrize("text", [ODD + FILE])
    def test_error(gradmask, text):
        model = Raises(text).eval()
        assert_no_gradient_masking(gradmask.audit(Defense(model, name=text), *batch(model.model)))

    @pytest.mark.parametrize("text", [ODD + FILE])
    def test_crash(gradmask, text):
        model = Raises(text).eval()
        model.forward = lambda images: open(text)
        gradmask.audit(model, *batch(model.model))

    def test_bare(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))
"""
)
REPORTS = (
    "--gradmask-json=out.json",
    "--gradmask-badge=badge.json",
    "--gradmask-html=out.html",
    "--junitxml=junit.xml",
)


@pytest.mark.longer
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "workers"])
def test_every_report_is_written(pytester: pytest.Pytester, workers: list[str]) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest_subprocess(*RUN, *REPORTS, *workers, "--tb=no")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*gradient masking audits*", "*NOT_MASKED*test_bare", "written to out.html"])
    for name in ("out.json", "out.html", "badge.json", "junit.xml"):
        text = (pytester.path / name).read_bytes().decode()
        assert printable(text) == text, name
    assert len(json.loads((pytester.path / "out.json").read_text())["audits"]) == 4
    assert r"odd \x1b[31m red \x00 \x07 \u202e \x9b1m" in (pytester.path / "out.html").read_text()
    shown = result.stdout.str().partition("gradient masking audits")[2]
    assert "model-\\udcff" in (pytester.path / "out.html").read_text()
    assert not re.search("[\x00\x07\x9b]|\x1b\\[31m red", shown)


@pytest.mark.longer
@pytest.mark.parametrize("option", ["json", "badge", "html"])
def test_a_report_that_cannot_be_written_costs_no_other(pytester: pytest.Pytester, option: str) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
    pytester.makepyfile(test_it=f"{DEFENSES}\n    def test_bare(gradmask):\n        from pathlib import Path\n"
        f"        Path('gone/{option}').mkdir(parents=True)\n        model = linear()\n"
        "        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))\n")  # fmt: skip
    files = {name: f"{name}.out" for name in ("json", "badge", "html")} | {option: f"gone/{option}"}
    (pytester.path / "gone").mkdir()
    arguments = [f"--gradmask-{name}={file}" for name, file in files.items()]
    result = pytester.runpytest_subprocess(*RUN, *arguments)
    result.stdout.fnmatch_lines(["NOT_MASKED*test_bare", f"writing gone/{option} failed: *Error*", "*1 passed*"])
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert sorted(file.name for file in Path(pytester.path).glob("*.out")) == sorted(
        file for name, file in files.items() if name != option
    )


INJECTED = (
    DEFENSES
    + r"""
    from pytest_gradmask import Defense

    ODD = ["<script>alert(1)</script> a|b`c ${{ x }} a::b,c ../../x", "a\n::error::owned %0A::error::owned"]

    @pytest.mark.parametrize("text", ODD, ids=ODD)
    def test_it(gradmask, text):
        model = linear()
        gradmask.audit(Defense(model, name=text), *batch(model, 8))
"""
)


@pytest.mark.longer
def test_names_of_tests_and_defenses_inject_nothing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makepyfile(test_it=INJECTED)
    result = pytester.runpytest_subprocess(*RUN, *REPORTS)
    result.assert_outcomes(passed=2)
    assert not [line for line in result.outlines if line.startswith("::error")]
    page, summary = ((pytester.path / name).read_text() for name in ("out.html", "summary.md"))
    assert "<script>alert" not in page + summary
    assert not [line for line in summary.splitlines() if line.startswith("::")]


def test_names_and_messages_are_printable() -> None:
    assert Defense(linear(), name="a\x1b[0m\x00").name == r"a\x1b[0m\x00"
    assert Defense(linear(), name="a\n::error::b").name == r"a\n::error::b"
    assert Attack(print, name="b\udcff").name == r"b\udcff"
    assert str(InputError("name='\x07'")) == r"name='\x07'"


@given(st.text(st.characters()) | st.text(st.sampled_from("\x00\x1b\x9b\r\udcff\u202e\u2028ab\n\t")))
def test_any_text_becomes_printable(text: str) -> None:
    shown = printable(text)
    assert shown.encode().decode() == printable(shown) == shown
    assert all(character.isprintable() or character in "\n\t" or not character.isascii() for character in shown)
    assert printable_data({text: [(text, 1)]}) == {shown: [(shown, 1)]}
    encodable_data([text])[0].encode()  # raises nothing


@pytest.mark.parametrize("text", ["plain", "déjà vu", "語", "emoji 🙂", "two\nlines\tand a tab", r"\x1b written out"])
def test_what_is_printable_stays(text: str) -> None:
    assert printable(text) == text
