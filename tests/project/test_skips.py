"""What may be skipped: what needs a GPU, large data, a browser or Linux. The extra ``test`` installs all else."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
#: The package that has a module, where their names differ.
PACKAGES = {"sklearn": "scikit-learn", "xdist": "pytest-xdist", "pytest_benchmark": "pytest-benchmark"}
PACKAGES |= {f"pytest_{name}": f"pytest-{name}" for name in ("cov", "randomly", "rerunfailures", "timeout")}
#: How many tests of a file may be skipped for other reasons than a package, and why.
OTHER = {
    "tests/attacks/test_agreement.py": (1, "large data"),
    "tests/audits/test_leaderboard.py": (1, "a browser"),
    "tests/auditing/test_bench.py": (3, "memory of Linux, and packages that are compared with"),
    "tests/devices/test_pretend_device.py": (1, "a backend in Python, since PyTorch 2.10"),
    "tests/execution/test_ray_engine.py": (1, "/proc of Linux"),
    "tests/loading/test_datasets.py": (3, "large data, and figures of one release"),
    "tests/project/test_companions.py": (1, "/proc of Linux"),
    "tests/project/test_examples.py": (1, "a release of scikit-learn"),
    "tests/project/test_faults.py": (1, "limits of memory of Linux"),
    "tests/project/test_memory.py": (1, "/proc of Linux"),
    "tests/project/test_whole_runs.py": (1, "/proc of Linux"),
    "tests/report/test_html_axe.py": (1, "a browser, and axe-core of npm"),
    "tests/report/test_html_in_chromium.py": (1, "a browser"),
}


def calls(file: Path) -> Iterator[tuple[str, str | None]]:
    """Name of each call that may skip tests, and its first argument if that is a text."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0] if node.args else None
            text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
            if node.func.attr in ("importorskip", "skip", "skipif"):
                yield node.func.attr, text


def installed_by(extra: str) -> set[str]:
    """Names of the packages that an extra installs, with those that all users have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = set()
    for requirement in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()  # type: ignore[union-attr]
        found.add(name)
        if name == "pytest-gradmask":
            found |= set().union(*(installed_by(each) for each in extras.split(",")))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_packages_of_tests_are_installed(file: Path) -> None:
    needed = {PACKAGES.get(text, text) for name, text in calls(file) if name == "importorskip" and text is not None}
    assert needed <= installed_by("test")


def test_other_skips_are_counted() -> None:
    found = {}
    for file in FILES:
        count = sum(name in ("skip", "skipif") for name, _ in calls(file))
        if count:
            found[str(file.relative_to(ROOT))] = count
    assert found == {file: count for file, (count, _) in OTHER.items()}


def test_readme_installs_it() -> None:
    assert "'.[test]'" in (ROOT / "README.md").read_text()
    assert {"ray", "foolbox", "pytest-benchmark", "mkdocs", "jinja2"} <= installed_by("test")
