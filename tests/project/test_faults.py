"""What happens to real runs: they are killed, the disk is full, memory is short. No verdict changes.

Each test runs an audit in new processes, once by default and 50 times under the marker ``nightly``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_gradmask.errors import CheckpointError
from pytest_gradmask.loading.checkpoints import load_checkpoint, save_card, save_model
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.verdict.audit import Audit
from tests.toys import audited, timeless

tries = pytest.mark.parametrize("tries", [1, pytest.param(50, marks=pytest.mark.nightly)])
Record = Callable[[str, object], None]

Undisturbed = tuple[dict[str, Any], float]


def own_environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def begin(cache: Path, *, delay: float = 0.002, fault: str = "none", number: int = 0) -> subprocess.Popen[str]:
    """Start an audit, and wait until it begins."""
    environment = own_environment()
    command = [sys.executable, "-m", "tests.project.fault_run", str(cache), str(delay), fault, str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What an audit that comes to its end has found."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The audit that nothing happens to, and how long it takes once it has begun."""
    process = begin(tmp_path_factory.mktemp("undisturbed"))
    started = time.monotonic()
    found = ended(process)
    assert found["audit"]["verdict"] == "MASKED"
    assert not found["warnings"]
    return found["audit"], time.monotonic() - started


def entries(cache: Path) -> int:
    """How many results a cache has."""
    return len(list(cache.rglob("*.result")))


@pytest.mark.longer
@tries
def test_killed_at_any_moment_it_goes_on_and_finds_the_same(
    tries: int, undisturbed: Undisturbed, tmp_path: Path, record_property: Record
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(0)
    killed = with_results = 0
    for number in range(tries):
        cache = tmp_path / str(number)
        process = begin(cache)
        while not number and not entries(cache):  # once with some results for certain
            time.sleep(0.01)
        if number:
            time.sleep(moments.uniform(0.1, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        with_results += entries(cache) > 0
        assert ended(begin(cache)) == {"audit": expected, "warnings": []}
    record_property("tries", tries)
    record_property(
        "result", f"{killed} were killed as they ran, {with_results} of them with results; all end with the same JSON"
    )
    assert killed >= tries / 2
    assert with_results


@pytest.mark.longer
@tries
def test_two_runs_that_share_a_cache_find_the_same(
    tries: int, undisturbed: Undisturbed, tmp_path: Path, record_property: Record
) -> None:
    for number in range(tries):
        both = [begin(tmp_path / str(number)) for _ in range(2)]
        assert [ended(process) for process in both] == [{"audit": undisturbed[0], "warnings": []}] * 2
        assert entries(tmp_path / str(number))
    record_property("tries", tries)
    record_property("result", "both find the same JSON, without a warning")


@pytest.mark.longer
@pytest.mark.parametrize("flips", [20, pytest.param(1000, marks=pytest.mark.nightly)])
def test_every_flipped_byte_is_noticed(flips: int, tmp_path: Path, record_property: Record) -> None:
    """Of the cache and of checkpoints: either is refused, or computed again to the same result."""
    models, cache = tmp_path / "models", tmp_path / "cache"
    parts: dict[str, dict[str, Any]] = {
        "net": {"architecture": "vgg", "arguments": {"layout": [4, "M", 4], "num_classes": 4}},
        "front": {"architecture": "dncnn", "arguments": {"depth": 3, "width": 2}},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, card in parts.items():
            save_model(name, build_model(**card), card, models)
    save_card("whole", {"architecture": "composite", "front_end": "front", "backbone": "net"}, models)

    def run() -> Audit:
        found = audited(load_checkpoint("whole", models), cache=cache, exhaustive=True)
        return replace(timeless(found), cached=False)

    expected, stored = run(), {file: file.read_bytes() for file in cache.rglob("*.result")}
    (whole,) = (file for file, content in stored.items() if b'"verdict"' in content)
    originals = {file: file.read_bytes() for file in models.iterdir()}
    positions = random.Random(0)
    for _ in range(flips):
        file = positions.choice(sorted(stored | originals))
        content = bytearray((stored | originals)[file])
        content[positions.randrange(len(content))] ^= positions.randrange(1, 256)
        if file != whole and file in stored:
            whole.unlink()  # or what it is made of is not read
        file.write_bytes(content)
        if file in originals:
            with pytest.raises(CheckpointError):
                run()
        else:
            with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
                assert run() == expected
        file.write_bytes((stored | originals)[file])
    record_property("tries", flips)
    record_property("result", "each noticed: weights and cards are refused, results computed again to the same")


@pytest.mark.longer
@tries
def test_a_full_disk_costs_the_cache_and_no_verdict(tries: int, tmp_path: Path, record_property: Record) -> None:
    expected = ended(begin(tmp_path / "expected", delay=0))["audit"]
    sizes = random.Random(0)
    for number in range(tries):
        cache = tmp_path / str(number)
        found = ended(begin(cache, delay=0, fault="disk", number=sizes.randrange(1000)))
        assert found["audit"] == expected
        assert any("cannot store" in warning for warning in found["warnings"])
        # What was written is whole, and is used where there is room again.
        assert ended(begin(cache, delay=0)) == {"audit": expected, "warnings": []}
    record_property("tries", tries)
    record_property("result", "a warning, the same JSON, and nothing half written")


@pytest.mark.longer
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
@tries
def test_where_memory_is_short_batches_are_halved(tries: int, tmp_path: Path, record_property: Record) -> None:
    # Other batches draw other random numbers: the verdict is the same, figures may differ.
    for number in range(tries):
        found = ended(begin(tmp_path / str(number), delay=0, fault="memory", number=3 * 2**30))
        assert found["audit"]["verdict"] == "MASKED"
        assert all(attack["status"] != "failed" for attack in found["audit"]["robust_accuracy"].values())
    record_property("tries", tries)
    record_property("result", "the same verdict, no attack failed")
