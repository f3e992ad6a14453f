"""``python -m tests.check``: every check of the project, one after another, until one fails.

Further arguments go to pytest: ``python -m tests.check tests/verdict`` runs those tests only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Module and arguments of each check, the fast ones first.
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("bandit", "-q", "-c", "pyproject.toml", "-r", "pytest_gradmask"),
    ("pytest", "-n", "2"),
    ("pytest", "-n", "2", "-m", "longer and not slow and not nightly"),
)
_NO_TESTS = 5  # pytest's exit status


def main(pytest_arguments: Sequence[str] = ()) -> int:
    """Run the checks; returns the exit status of the first that fails, or 0."""
    for check in CHECKS:
        command = ["python", "-m", *check, *(pytest_arguments if check[0] == "pytest" else ())]
        print("$", *command, flush=True)
        status = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=False).returncode
        # Of files that were named, none may hold longer tests.
        if status and not (status == _NO_TESTS and pytest_arguments and "-m" in check):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
