"""The site builds without a warning and loads nothing from elsewhere; its reference is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pytest_gradmask
from docs.pages import OUTSIDE, hooks, linked, marker_arguments, reference, registered
from pytest_gradmask import plugin
from pytest_gradmask.verdict.interim import _FIRST, _LAST, _OTHERS, InterimAnalysis, attempt_share
from pytest_gradmask.verdict.paired import rejected_below, upper_bound

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "pytest_gradmask"


@pytest.fixture(scope="module")
def page() -> str:
    return reference()


def test_the_reference_has_every_option_with_its_ini_twin(page: str) -> None:
    recorder = registered()
    assert {"--gradmask", "--gradmask-budget", "--gradmask-init"} <= set(recorder.options)
    assert {"gradmask", "gradmask_budget"} <= set(recorder.ini)
    for name, described in recorder.options.items():
        (row,) = re.findall(rf"^\| `{name}[=`].*$", page, re.MULTILINE)
        assert re.split(r"[|%]", described["help"])[0] in row
        twin = name.removeprefix("--").replace("-", "_")
        assert row.endswith(f"| `{twin}` |") is (twin in recorder.ini)
    for name in recorder.ini:
        assert f"\n| `{name}` |" in page


def test_what_the_recorder_sees_is_what_pytest_offers(pytester: pytest.Pytester) -> None:
    text = pytester.runpytest("--help").stdout.str()
    recorder = registered()
    assert set(re.findall(r"^  (--gradmask[a-z-]*)", text, re.MULTILINE)) == set(recorder.options)
    assert set(re.findall(r"^  (gradmask[a-z_]*) \(", text, re.MULTILINE)) == set(recorder.ini)


def test_the_reference_has_every_argument_of_the_marker(page: str) -> None:
    assert marker_arguments()["eps"] == "8/255"
    assert marker_arguments()["bounds"] == "(0,1)"
    for name, default in marker_arguments().items():
        assert re.search(rf"^\| `{name}` \| `{re.escape(default)}` \| .{{10,}} \|$", page, re.MULTILINE)


def test_the_reference_has_every_fixture_function_class_and_hook(page: str) -> None:
    for name in plugin.__all__:
        (text,) = re.findall(rf"^### `{name}` .*\n\n(.+)", page, re.MULTILINE)
        assert len(text) > 20
    for name in pytest_gradmask.__all__:
        assert f"\n::: pytest_gradmask.{name}\n" in page + "\n"
    assert len(hooks()) >= 3
    for name in hooks():
        assert f"\n::: pytest_gradmask.plugin.hookspecs.{name}\n" in page + "\n"


def test_the_navigation_has_every_page_once() -> None:
    # Its tags for Python objects are none that a safe loader knows; there are none in the navigation.
    text = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(text[text.index("nav:") : text.index("validation:")])["nav"]
    named = [page for group in nav for page in _pages(group)]
    pages = {file.name for file in DOCS.glob("*.md")} | {"reference.md", *OUTSIDE.values()}
    assert sorted(named) == sorted(pages)


def _pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inside = entry.values() if isinstance(entry, dict) else entry
    return [page for each in inside for page in _pages(each)]  # type: ignore[attr-defined]


def test_the_glossary_is_in_alphabetical_order() -> None:
    words = re.findall(r"^\| (.+?) \| .+ \| .*\|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)[2:]
    assert len(words) > 50
    assert words == sorted(words, key=str.lower)


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"[\w./*-]+/[\w.*-]*\.(?:py|md|json|toml)\b|(?<=`)[\w./-]+/(?=`)", text))
    assert len(named) > 10
    missing = [name for name in named if not any(list(base.glob(name)) for base in (ROOT, PACKAGE))]
    assert set(missing) <= {"pytest_gradmask/attacks/NAME.py"}


def test_the_figures_of_the_statistics_page_are_right() -> None:
    text = (DOCS / "statistics.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) percentage points \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for images, points in rows:
        bound = upper_bound(0, 0, int(images.replace(",", "")), InterimAnalysis(1).upper_level(0.99))
        assert float(points) == pytest.approx(100 * bound, abs=0.05)
    attempts = re.findall(r"^\| (\d+) \| (0\.\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(attempts) == 5
    for attempt, share, images in attempts:
        assert float(share) == pytest.approx(attempt_share(int(attempt)), abs=1e-6)
        level = 1 - InterimAnalysis(1, attempt=int(attempt)).upper_level(0.99)
        excluded = [bool(rejected_below(0, 0, int(images) - fewer, 0.05, level)) for fewer in (0, 1)]
        assert excluded == [True, False]
    for share in (_FIRST, _OTHERS, _LAST):
        assert re.search(rf"\b{share}\b", text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a](../examples/README.md)", "[a](examples.md)"),
        ("[a](../README.md)", "[a](index.md)"),
        ("[a](docs/findings.md#randomized)", "[a](findings.md#randomized)"),
        ("[a](../docs/ci.md)", "[a](ci.md)"),
        ("[a](../examples/workflow.yml)", "a (`examples/workflow.yml`)"),
        ("[a](findings.md)", "[a](findings.md)"),
        ("[a](https://example.org/docs/x)", "[a](https://example.org/docs/x)"),
    ],
)
def test_links_hold_on_the_site(text: str, wanted: str) -> None:
    assert linked(text) == wanted


@pytest.mark.longer
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        pytest.importorskip(package, reason="needs pytest-gradmask[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {"tutorial.html", "reference.html", "architecture.html"} <= {file.name for file in pages}
    for file in pages:
        text = file.read_text()
        assert "```" not in text  # a fence that was not understood
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|icon|preconnect)\"?[^>]*?href=\"?([^\s\">]+)", text)
        assert loaded
        assert not [source for source in loaded if re.match(r"(https?:)?//", source)]
    findings = (tmp_path / "findings.html").read_text()
    assert re.search(r'id="?zero-gradient"?', findings)  # reports link to sections by the finding's id
    assert "fixture-gradmask" in (tmp_path / "reference.html").read_text()
