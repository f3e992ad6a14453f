"""Imports point down only, only the plugin knows pytest, and nothing imports torch before it is needed."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_gradmask

PACKAGE = Path(pytest_gradmask.__file__).parent

#: From the top to the bottom; a module may import from those below it, and from its own folder.
LAYERS = (
    "plugin",
    "report",
    "training",
    "transfer",
    "auditing",
    "binarization",
    "probes",
    "attacks",
    "randomized",
    "loading",
    "execution",
    "verdict",
    "defense",
    "threat",
    "checks",
    "errors",
    "printable",
)
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")
HEAVY = (
    *("torch", "torchvision", "timm", "pyautoattack", "autoattack", "ray"),
    *("matplotlib", "jinja2", "markdown_it", "PIL"),
)


def module_name(file: Path) -> str:
    """Dotted name below the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}
every_module = pytest.mark.parametrize("name", MODULES)


def imports(file: Path) -> set[str]:
    """Dotted names of everything a file imports, anywhere in it: modules, and members with their modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["pytest_gradmask", *module_name(file).split(".")]
            keep = len(package) - node.level + (file.name == "__init__.py")
            base = [*package[:keep]] if node.level else []
            base += node.module.split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def own_imports(file: Path) -> set[str]:
    """Modules of this package that a file imports; ``""`` is the package itself."""
    found = set()
    for name in imports(file):
        if name.split(".")[0] == "pytest_gradmask":
            inner = name.split(".")[1:]
            found.add(
                next((".".join(inner[:n]) for n in range(len(inner), 0, -1) if ".".join(inner[:n]) in MODULES), "")
            )
    return found


def test_every_module_has_its_layer() -> None:
    assert {name.split(".")[0] for name in MODULES} <= set(LAYERS)


@every_module
def test_imports_point_down(name: str) -> None:
    folder = name.split(".")[0]
    for imported in own_imports(MODULES[name]):
        assert imported, f"{name} imports from the package itself, which imports everything"
        other = imported.split(".")[0]
        assert other == folder or LAYERS.index(other) > LAYERS.index(folder), (
            f"{name} imports {imported}, which is above it"
        )


def test_imports_have_no_cycle() -> None:
    graph = {name: own_imports(file) - {name} for name, file in MODULES.items()}
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(MODULES)


@every_module
def test_only_the_plugin_imports_pytest(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(MODULES[name])}
    if name.split(".")[0] != "plugin":
        assert not roots & {"pytest", "_pytest", "pluggy"}


def test_the_scan_sees_imports() -> None:
    # So that the tests above cannot pass on a scan that finds nothing.
    assert own_imports(PACKAGE / "verdict" / "rule.py") == {
        "verdict.interim",
        "verdict.paired",
        "verdict.reasons",
        "verdict.results",
        "verdict.stats",
    }
    assert "attacks.evaluate" in own_imports(PACKAGE / "probes" / "trace.py")
    assert "torch" in imports(PACKAGE / "auditing" / "run.py")


@pytest.mark.parametrize("module", ["pytest_gradmask", "pytest_gradmask.plugin"])
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", pytest_gradmask.__all__)
def test_public_names_are_there(name: str) -> None:
    found = getattr(pytest_gradmask, name)
    assert found.__name__ == name
    assert found.__module__.startswith("pytest_gradmask.")


def test_no_module_hides_a_public_name() -> None:
    assert not {path.stem for path in PACKAGE.iterdir()} & set(pytest_gradmask.__all__)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'pytest_gradmask' has no attribute 'nonsense'"):
        _ = pytest_gradmask.nonsense
