"""Packages that tests do not install, as far as this one uses them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from torch import nn


class BenchmarkDataset(Enum):
    """As that of RobustBench."""

    cifar_10 = "cifar10"
    imagenet = "imagenet"


class ThreatModel(Enum):
    """As that of RobustBench."""

    Linf = "Linf"
    L2 = "L2"


def robustbench(monkeypatch: pytest.MonkeyPatch, cache: Path, make: Callable[[], nn.Module]) -> dict[str, Any]:
    """Stands in for RobustBench: its enumerations, its table of models, and a loader that records its arguments.

    Its models for CIFAR-10 and Linf are ``Standard``, and ``Gone2020``, which cannot be downloaded.

    Args:
        monkeypatch: of the test.
        cache: folder of caches.
        make: the model that its loader returns.

    Returns:
        The arguments of the loader's last call; empty before one.
    """
    called: dict[str, Any] = {}

    def load(**arguments: Any) -> nn.Module:
        called.update(arguments)
        if arguments["model_name"] == "Gone2020":
            raise OSError("no route to host")
        return make()

    names: dict[str, Any] = {"Standard": {}, "Gone2020": {}}
    table = {BenchmarkDataset.cifar_10: {ThreatModel.Linf: names}, BenchmarkDataset.imagenet: {}}
    parts = {
        name: types.ModuleType(name) for name in ("robustbench", "robustbench.utils", "robustbench.model_zoo.enums")
    }
    vars(parts["robustbench.utils"]).update(all_models=table, load_model=load)
    vars(parts["robustbench.model_zoo.enums"]).update(BenchmarkDataset=BenchmarkDataset, ThreatModel=ThreatModel)
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return called
