"""Research code and examples import public names, and internals only through one documented module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pytest_gradmask
from pytest_gradmask.auditing import research

ROOT = Path(__file__).parents[2]

#: By module, the names that `audits/`, `benchmarks/` and `examples/` may import.
ALLOWED = {
    "pytest_gradmask": {*pytest_gradmask.__all__},
    "pytest_gradmask.auditing.research": {*research.__all__},
    # The types of two fixtures, for annotations.
    "pytest_gradmask.plugin.fixtures": {"EvalBatch", "Gradmask"},
    # Layers above `auditing`, so that its research module cannot export their names.
    "pytest_gradmask.report.json": {"to_json"},
    "pytest_gradmask.report.plots": {"heat"},
    "pytest_gradmask.report.failure": {"explain"},
    "pytest_gradmask.training.provenance": {"exit_code"},
}
#: Modules that commands name in strings: ``python -m pytest_gradmask.training`` and ``-p pytest_gradmask.plugin``.
COMMANDS = {"pytest_gradmask.training", "pytest_gradmask.plugin"}
FILES = {
    file.relative_to(ROOT).as_posix(): file
    for folder in ("audits", "benchmarks", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
}


def internals(code: str) -> list[str]:
    """Everything that code imports from the package, or names in a string as a module, and is not allowed."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("pytest_gradmask.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pytest_gradmask":
            names = ALLOWED.get(str(node.module), set())
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module = re.fullmatch(r"pytest_gradmask(\.\w+)+", node.value)
            found += [node.value] if module and node.value not in COMMANDS else []
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_are_public(name: str) -> None:
    assert internals(FILES[name].read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "from pytest_gradmask import Budget, audit",
        "import pytest_gradmask",
        "from pytest_gradmask.auditing.research import Oracle",
        "from pytest_gradmask.plugin.fixtures import EvalBatch",
        "command = ['-m', 'pytest_gradmask.training']",
        "import torch",
    ],
)
def test_public_imports_are_allowed(code: str) -> None:
    assert internals(code) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from pytest_gradmask import _HOMES", "pytest_gradmask._HOMES"),
        ("from pytest_gradmask import attacks", "pytest_gradmask.attacks"),
        ("from pytest_gradmask.attacks.pgd import pgd", "pytest_gradmask.attacks.pgd.pgd"),
        ("from pytest_gradmask.auditing.research import Cache", "pytest_gradmask.auditing.research.Cache"),
        ("def f():\n    import pytest_gradmask.errors", "pytest_gradmask.errors"),
        ("import_module('pytest_gradmask.verdict.rule')", "pytest_gradmask.verdict.rule"),
    ],
)
def test_internal_imports_are_found(code: str, name: str) -> None:
    assert internals(code) == [name]


def test_every_folder_is_scanned() -> None:
    assert {"audits/measures.py", "benchmarks/steps.py", "examples/front-end/test_compressed.py"} <= FILES.keys()


def test_research_names_exist_and_are_documented() -> None:
    for name in research.__all__:
        assert hasattr(research, name)
        assert f"`{name}`" in str(research.__doc__)


def test_research_exports_no_public_names() -> None:
    assert not {*research.__all__} & {*pytest_gradmask.__all__}
