"""The measurements: nightly tests, coverage, mutants, versions. Each runs for minutes to hours."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.records import stored
from pytest_gradmask import InputError
from pytest_gradmask.auditing.research import versions

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]

#: The outcome of a mutant, by the exit code of its tests that mutmut stores.
_FATES = {0: "survived", 1: "killed", 3: "killed", 5: "no tests", 33: "no tests"}
_FATES |= dict.fromkeys((-24, 24, 36, 152, 255), "timed out")


def nightly(files: Sequence[str] = (), results: Path = RESULTS) -> Record:
    """All tests with the marker ``nightly``, or those of some files: then the stored results of others are kept.

    A file may be followed by the name of a test, as for pytest.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "junit.xml")
        run(sys.executable, "-m", "pytest", "-m", "nightly", "-q", "-n2", f"--junitxml={file}", *files)
        if not file.exists():
            raise InputError("nightly: pytest wrote no report; its output says why")
        numbers = versions("torch", "pytest", "hypothesis", "pytest-xdist")
        found = [{**each, "versions": numbers} for each in tests(file)]
    kept = [each for record in stored("nightly", results) if files for each in record["tests"]]
    both = renewed(kept, found, lambda each: (each["file"], each["test"]))
    return {"tests": sorted(both, key=lambda each: str(each["file"]))}


def renewed(kept: Sequence[Record], found: Sequence[Record], key: Callable[[Record], object]) -> list[Record]:
    """Stored entries and new ones, without the stored ones that have the key of a new one."""
    again = {key(each) for each in found}
    return [*(each for each in kept if key(each) not in again), *found]


def tests(junit: Path) -> Iterator[Record]:
    """Each test of a JUnit file, with its recorded properties."""
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        if not case.attrib["classname"]:  # a skipped module
            continue
        properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        failed = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if failed else "passed" if case.find("skipped") is None else "skipped"
        yield {
            "file": case.attrib["classname"].replace(".", "/") + ".py",
            "test": case.attrib["name"],
            "outcome": outcome, "seconds": float(case.attrib["time"]), **properties,
        }  # fmt: skip


def coverage() -> Record:
    """Lines and branches of the package that the default tests reach, in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "coverage.json")
        data = f"--data-file={file.with_suffix('.data')}"
        # pytest-cov would start only after the plugin has been imported.
        run(
            sys.executable, "-m", "coverage", "run", data, "--branch", "--source=pytest_gradmask", "-m", "pytest", "-q",
            "-m", "not slow and not nightly",
        )  # fmt: skip
        run(sys.executable, "-m", "coverage", "json", data, "-o", file)
        if not file.exists():
            raise InputError("coverage: there is no report; the output says why")
        found = json.loads(file.read_text())
    modules = {
        name: {"percent": round(module["summary"]["percent_covered"], 1), "missing": module["missing_lines"]}
        for name, module in found["files"].items()
        if module["summary"]["percent_covered"] < 100
    }
    total = found["totals"]
    return {
        "percent": round(total["percent_covered"], 2), "branches": total["num_branches"],
        "covered_branches": total["covered_branches"], "statements": total["num_statements"],
        "covered_statements": total["covered_lines"], "modules": modules, "versions": versions("pytest", "coverage"),
    }  # fmt: skip


def mutants() -> Record:
    """The outcome of small changes to the code that verdicts depend on (see ``[tool.mutmut]``)."""
    run(sys.executable, "-m", "mutmut", "run")
    return mutants_in(ROOT / "mutants") | {"versions": versions("mutmut", "pytest")}


def mutants_in(folder: Path) -> Record:
    """The results of mutmut by module, and the names of all mutants that no test detects."""
    modules, alive = {}, []
    for file in sorted(folder.rglob("*.meta")):
        codes = json.loads(file.read_text())["exit_code_by_key"]
        if codes:
            name = file.relative_to(folder).with_suffix("").as_posix()
            outcomes = {key: _FATES.get(code, "not run") for key, code in codes.items()}
            modules[name] = dict(Counter(outcomes.values()))
            alive += [key for key, fate in outcomes.items() if fate in ("survived", "no tests")]
    return {"modules": modules, "alive": sorted(alive)}


def version_matrix() -> Record:
    """The default tests in each environment of ``[tool.tox]``."""
    environments = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tox"]["env_list"]
    return {"environments": {name: _environment(name) for name in environments}}


def _environment(name: str) -> Record:
    output = run(sys.executable, "-m", "tox", "run", "-e", name)
    closing = re.findall(r"^=* ?(\d+ (?:passed|failed).*?) in [\d.]+s", output, re.MULTILINE)
    packages = ("torch", "torchvision", "timm", "pytest", "numpy", "scipy")
    python = ROOT / ".tox" / name / "bin" / "python"
    code = f"from pytest_gradmask.execution.versions import versions; print(versions(*{packages}))"
    return {"result": closing[-1] if closing else "did not run", "versions": ast.literal_eval(run(python, "-c", code))}


def run(*command: str | Path) -> str:
    """Run a command, show its output as it comes, and return the output."""
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines)
