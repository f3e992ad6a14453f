"""The cost of the plugin where it is installed but not used: ``pytest --collect-only`` on an empty suite."""

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
    """Milliseconds with and without the plugin, in alternating rounds, and the median of the differences.

    No other plugin is loaded, because other plugins take longer to load than this one. The run without this plugin
    loads an empty one instead, because pytest searches all installed packages for a plugin that is named. It also
    searches them in a usual run, where no plugin is named. Python caches compiled code, as it does by default.
    """
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": ""}
    times: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "no_plugin.py").touch()
        for _ in range(rounds + 1):
            for which, plugin in (("with", "pytest_gradmask.plugin"), ("without", "no_plugin")):
                command = [
                    sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", plugin
                ]  # fmt: skip
                started = time.perf_counter()
                done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, check=False)
                times[which].append(1000 * (time.perf_counter() - started))
                if done.returncode != _NOTHING_COLLECTED:
                    raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()}")
    # The first round fills the cache of the disk.
    pairs = list(zip(times["with"][1:], times["without"][1:], strict=True))
    differences = sorted(loaded - empty for loaded, empty in pairs)
    quarter = len(differences) // 4
    return {
        "rounds": rounds,
        "with": statistics.median(loaded for loaded, _ in pairs),
        "without": statistics.median(empty for _, empty in pairs),
        "more": statistics.median(differences),
        "spread": [differences[quarter], differences[-1 - quarter]],
    }
