"""All checks of `on_pretend_device`, in a process that has the device from its start.

PyTorch's autograd fixes its devices at the first backward pass of a process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices import pretend

CHECKS = Path(__file__).with_name("on_pretend_device.py")


@pytest.mark.longer
@pytest.mark.skipif(not pretend.AVAILABLE, reason="needs PyTorch 2.10, for a backend in Python")
def test_everything_runs_on_a_device_that_is_not_the_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    run = subprocess.run(command, cwd=CHECKS.parents[2], capture_output=True, text=True, check=False, timeout=500)
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout
