"""Stored results of benchmarks, with the machine and the versions of packages."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pytest_gradmask.auditing.research import replaced, versions

RESULTS = Path(__file__).parent / "results"


def clock(device: str = "cpu") -> Callable[[], float]:
    """A clock in seconds, for differences.

    With one thread on a CPU it measures the time of this process, so that other processes hardly disturb it.
    """
    single_thread = not device.startswith("cuda") and torch.get_num_threads() == 1
    return time.process_time if single_thread else time.perf_counter


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine and the versions that a time depends on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "processor": platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "versions": versions(
            "pytest-gradmask",
            "torch",
            "torchvision",
            "timm",
            "pyautoattack",
            "autoattack",
            "foolbox",
            "torchattacks",
            "adv-lib",
        ),
    }


def store(name: str, record: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write a record in one atomic step. It replaces an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / f"{name}.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def stored(prefix: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All records whose names start with the prefix."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"{prefix}*.json"))]
