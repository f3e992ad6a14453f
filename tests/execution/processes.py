"""Several processes that begin the same work at the same moment."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

NAMES = ("first", "second", "third")


def at_once(script: str, folder: Path) -> list[tuple[int, str, str]]:
    """Run a script once for each of `NAMES`: return code, output and errors of each.

    Args:
        script: Python. Its arguments are the folder and a name. It touches the file of that name once it is ready, and
            begins when there is a file ``go``.
        folder: empty.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in NAMES
    ]
    while not all((folder / name).exists() for name in NAMES) and all(each.poll() is None for each in processes):
        time.sleep(0.01)
    (folder / "go").touch()
    said = [each.communicate(timeout=100) for each in processes]
    return [(each.returncode, *texts) for each, texts in zip(processes, said, strict=True)]
