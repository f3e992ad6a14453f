"""What the plugin costs where it is installed and not used: ``pytest --collect-only`` on an empty suite."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_NOTHING_COLLECTED = 5


def startup_cost(rounds: int = 21) -> dict[str, Any]:
    """Milliseconds with and without the plugin, in turns, and the median of the differences.

    No other plugin is loaded: those of this project's own tests take longer than what is measured. Without the plugin
    an empty one is loaded, as pytest looks through everything that is installed for whatever it is told to load, and
    does so anyway where it is told nothing. Python keeps compiled code, as it does by default.
    """
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": ""}
    times: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "no_plugin.py").touch()
        for _ in range(rounds + 1):
            for which, plugin in (("with", "pytest_gradmask.plugin"), ("without", "no_plugin")):
                command = [
                    sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", plugin
                ]  # fmt: skip
                started = time.perf_counter()
                done = subprocess.run(command, cwd=empty, env=alone, capture_output=True, check=False)
                times[which].append(1000 * (time.perf_counter() - started))
                if done.returncode != _NOTHING_COLLECTED:
                    raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()}")
    # The first round warms the disk's cache.
    pairs = list(zip(times["with"][1:], times["without"][1:], strict=True))
    differences = sorted(one - other for one, other in pairs)
    quarter = len(differences) // 4
    return {
        "rounds": rounds,
        "with": statistics.median(one for one, _ in pairs),
        "without": statistics.median(other for _, other in pairs),
        "more": statistics.median(differences),
        "spread": [differences[quarter], differences[-1 - quarter]],
    }
