"""Run the examples as a user would: build the wheel, install it into a fresh environment, and run the tests there.

``python examples/run.py --help`` lists the options. The exit status is 1 if a test of an example fails or does not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent

#: How many tests of each example pass, and how many are skipped because they need real weights.
EXPECTED = {"front-end": (3, 0), "randomized": (2, 0), "published-claim": (2, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen examples, or all. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("examples", nargs="*", metavar="NAME", help=f"some of {', '.join(EXPECTED)} (default: all)")
    parser.add_argument("--reuse", action="store_true", help="use the packages of this Python, which is faster")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.examples if name not in EXPECTED]
    if unknown:
        parser.error(f"no example {unknown[0]!r}; there are {', '.join(EXPECTED)}")
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        python = _environment(Path(folder), reuse=options.reuse)
        print(f"installed in {time.monotonic() - started:.0f} s", flush=True)
        wrong = [name for name in options.examples or EXPECTED if not _as_expected(name, python, Path(folder))]
    print(f"not as expected: {', '.join(wrong)}" if wrong else "all examples are as expected")
    return 1 if wrong else 0


def _environment(folder: Path, *, reuse: bool) -> Path:
    """Make a fresh environment with the wheel of this repository. Returns the path of its Python."""
    wheels = folder / "wheels"
    # The build backend is downloaded, too, unless it is installed here and may be reused.
    build = ["--no-build-isolation"] if reuse and importlib.util.find_spec("hatchling") else []
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *build, "--wheel-dir", wheels, HERE.parent])
    (wheel,) = wheels.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    if reuse:
        # A .pth file instead of system-site-packages: the latter adds the packages of the base Python of a virtual
        # environment, and not those of the environment itself.
        inside = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(subprocess.run([python, "-c", inside], check=True, capture_output=True, text=True).stdout.strip())
        borrowed = [path for path in sys.path if path.endswith("-packages")]
        (site / "borrowed.pth").write_text("\n".join(borrowed))
        _run([*install, "--no-deps", "--ignore-installed", wheel])
    else:
        _run([*install, wheel, "scikit-learn"])
    return python


def _as_expected(name: str, python: Path, folder: Path) -> bool:
    """Run the tests of one example and show their output. Returns whether the expected number passed."""
    print(f"\n== {name}", flush=True)
    report = folder / f"{name}.xml"
    pytest: list[str | Path] = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    _run([*pytest, "--gradmask", "--gradmask-no-cache", f"--junitxml={report}"], HERE / name, check=False)
    if not report.exists():
        return False
    counts = ElementTree.parse(report).getroot()[0].attrib
    tests, bad, skipped = int(counts["tests"]), int(counts["failures"]) + int(counts["errors"]), int(counts["skipped"])
    return not bad and (tests - skipped, skipped) == EXPECTED[name]


def _run(command: Sequence[str | Path], where: Path | None = None, *, check: bool = True) -> None:
    # Without PYTHONPATH, so that the installed package is tested.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=where, check=check, env=environment)


if __name__ == "__main__":
    sys.exit(main())
