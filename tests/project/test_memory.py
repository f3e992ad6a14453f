"""The memory of a process does not grow with the number of its audits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.project.test_faults import Record, own_environment

SCRIPT = """
import gc, json, os, sys
from pathlib import Path
import torch
from tests.toys import KillGradient, Noisy, audited, linear, masked

torch.set_num_threads(1)
KEPT = []

def audit(number):
    make = (lambda: masked(KillGradient), lambda: linear(), lambda: Noisy(linear(), 0.05).eval())[number % 3]
    found = audited(make(), exhaustive=number % 2 == 0)
    if sys.argv[1] == "leak":
        KEPT.append(torch.ones(2**18))  # 1 MiB

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

found = []
for number in range(int(sys.argv[2])):
    audit(number)
    found.append(resident())
print(json.dumps(found))
"""
_FIRST = 25  # libraries load what they need, and allocators reach their size
_MOST = 15.0  # MiB


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads its memory in /proc")
@pytest.mark.parametrize("leaks", [False, True], ids=["as it is", "with a leak"])
def test_a_hundred_audits_in_one_process(leaks: bool, record_property: Record) -> None:
    command = [sys.executable, "-c", SCRIPT, "leak" if leaks else "as it is", "100"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=own_environment(OMP_NUM_THREADS="1"), timeout=1500
    )
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout.splitlines()[-1])
    growth = resident[-1] - resident[_FIRST - 1]
    record_property("tries", len(resident))
    record_property("result", f"{growth:+.1f} MiB after the first {_FIRST}, of {resident[-1]:.0f} MiB")
    assert (growth > _MOST) is leaks, resident
