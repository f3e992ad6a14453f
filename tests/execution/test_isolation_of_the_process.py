"""An audit restores the state of the process."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradmask.execution import surroundings
from tests.execution.isolation_toys import Inside
from tests.toys import KillGradient, audited, global_state, linear, masked, seed_all


def test_random_states(inside: Inside, model: nn.Module) -> None:
    seed_all(1)
    before = global_state()
    with inside(model):
        seed_all(4)
        assert global_state() != before
    assert global_state() == before


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode(inside: Inside, model: nn.Module, enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        with inside(model):
            torch.set_grad_enabled(not enabled)
        assert torch.is_grad_enabled() == enabled


def test_default_dtype(inside: Inside, model: nn.Module) -> None:
    with inside(model):
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() is torch.float32


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "default device": (lambda: torch.empty(0).device, lambda: torch.set_default_device("meta")),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "determinism": (torch.get_deterministic_debug_mode, lambda: torch.use_deterministic_algorithms(True)),
    "precision": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "cuDNN": (lambda: torch.backends.cudnn.deterministic, lambda: setattr(torch.backends.cudnn, "deterministic", True)),
    "profiler": (sys.getprofile, lambda: sys.setprofile(lambda *_: None)),
    "warnings": (lambda: warnings.filters[:], lambda: warnings.simplefilter("ignore", BytesWarning)),
    "oneDNN": (lambda: torch.backends.mkldnn.enabled, lambda: torch.backends.mkldnn.set_flags(False)),
    "fast path": (torch.backends.mha.get_fastpath_enabled, lambda: torch.backends.mha.set_fastpath_enabled(False)),
    "anomaly mode": (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(True)),
    "print options": (lambda: str(torch.tensor(1 / 3)), lambda: torch.set_printoptions(precision=2)),
    "print options of NumPy": (np.get_printoptions, lambda: np.set_printoptions(precision=2)),
    "errors of NumPy": (np.geterr, lambda: np.seterr(divide="raise")),
    "recursion limit": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1)),
    "path": (lambda: sys.path[:], lambda: sys.path.append("elsewhere")),
    "working directory": (os.getcwd, lambda: os.chdir("/")),
    "environment": (lambda: os.environ.get("GRADMASK_TOY"), lambda: os.environ.update(GRADMASK_TOY="1")),
    "level of a logger": (lambda: logging.getLogger().level, lambda: logging.getLogger().setLevel(1)),
    "a function of PyTorch": (lambda: torch.autograd.grad, lambda: setattr(torch.autograd, "grad", print)),
    "hooks of all modules": (
        lambda: dict(nn.modules.module._global_forward_hooks),
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    ),
}


@pytest.mark.parametrize(("read", "change"), CHANGES.values(), ids=CHANGES)
def test_settings_of_the_process(
    inside: Inside, model: nn.Module, read: Callable[[], object], change: Callable[[], object]
) -> None:
    before = read()
    with inside(model):
        change()
        assert read() != before
    assert read() == before


def test_default_device_of_the_user_stays(inside: Inside, model: nn.Module) -> None:
    torch.set_default_device("meta")
    try:
        with inside(model):
            torch.set_default_device("cpu")
        assert torch.empty(0).device == torch.device("meta")
    finally:
        torch.set_default_device(None)


def test_an_audit_leaves_hooks_and_loggers_alone() -> None:
    def loggers() -> dict[str, tuple[int, list[logging.Handler]]]:
        named = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
        return {
            name: (logger.level, logger.handlers[:])
            for name, logger in named.items()
            if isinstance(logger, logging.Logger)
        }

    def hooks(model: nn.Module) -> list[tuple[int, int, int]]:
        return [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ]

    audited(masked(KillGradient), exhaustive=True)  # imports libraries that may create loggers
    model = masked(KillGradient)
    model.register_forward_hook(lambda *_: None)
    before = loggers(), hooks(model)
    audited(model, exhaustive=True)
    assert (loggers(), hooks(model)) == before


def test_tracer(inside: Inside, model: nn.Module) -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with inside(model):
            sys.settrace(None)
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is trace


def test_settings_that_cannot_be_read_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch refuses to read a precision by its older function once a newer one has set it."""
    written: list[object] = []

    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(surroundings, "_SETTINGS", (*surroundings._SETTINGS, (refuses, written.append)))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert [audited(linear(), cache=tmp_path).cached for _ in range(2)] == [False, True]
    assert written == []
