"""Settings of the whole process that a defense, or a library that an attack uses, may change: kept, and restored."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch


def _default_device() -> torch.device:
    # Not torch.get_default_device: in torch 2.6 it raises after the default was set and unset again.
    return torch.empty(0).device


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _folder() -> str | None:
    with suppress(OSError):  # it may have been deleted
        return os.getcwd()
    return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _set_environment(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _set_path(path: list[str]) -> None:
    sys.path[:] = path


def _anomalies() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


#: A getter and a setter of each.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (_default_device, _set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    *(
        (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    ),
    (lambda: torch.backends.mkldnn.enabled, lambda enabled: torch.backends.mkldnn.set_flags(enabled)),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (_anomalies, lambda modes: torch.set_anomaly_enabled(*modes)),
    (lambda: dict(vars(torch._tensor_str.PRINT_OPTS)), vars(torch._tensor_str.PRINT_OPTS).update),
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: sys.path[:], _set_path),
    (_folder, _set_folder),
    (os.environ.copy, _set_environment),
)
#: Where functions may be replaced by others.
NAMESPACES: tuple[Any, ...] = (
    torch, torch.autograd, torch.nn.functional, torch.Tensor, torch.nn.Module, torch.nn.modules.module,
)  # fmt: skip


class Unreadable(str):
    """Why a setting could not be read."""


def readable(read: Callable[[], object]) -> object:
    """A setting; or the error, as text, where older and newer functions for it were mixed, which PyTorch refuses."""
    try:
        return read()
    except RuntimeError as error:
        return Unreadable(str(error))


@contextmanager
def surroundings_restored() -> Iterator[None]:
    """On exit, restore all of them, and also NumPy's, loggers, warnings filters and functions of PyTorch."""
    before = [readable(read) for read, _ in _SETTINGS]
    functions = [dict(vars(namespace)) for namespace in NAMESPACES]
    hooks = _hooks_of_all_modules()
    loggers = _loggers()
    with warnings.catch_warnings(), np.errstate(), np.printoptions():  # an import may add warnings filters
        try:
            yield
        finally:
            for namespace, kept in zip(NAMESPACES, functions, strict=True):
                now = vars(namespace)
                for name in [name for name, value in kept.items() if callable(value) and now.get(name) is not value]:
                    setattr(namespace, name, kept[name])
            for (read, write), value in zip(_SETTINGS, before, strict=True):
                # Some setters are slow even when nothing changes.
                if not isinstance(value, Unreadable) and readable(read) != value:
                    write(value)
            for dictionary, entries in hooks:
                if dictionary != entries:
                    dictionary.clear()
                    dictionary.update(entries)
            _set_loggers(loggers)


def _hooks_of_all_modules() -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    found = [value for name, value in vars(torch.nn.modules.module).items() if name.startswith("_global_")]
    return [(value, dict(value)) for value in found if isinstance(value, dict)]


def _loggers() -> list[tuple[logging.Logger, int, bool, bool, list[logging.Handler]]]:
    named = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return [
        (logger, logger.level, logger.disabled, logger.propagate, logger.handlers[:])
        for logger in named
        if isinstance(logger, logging.Logger)
    ]


def _set_loggers(loggers: list[tuple[logging.Logger, int, bool, bool, list[logging.Handler]]]) -> None:
    for logger, level, disabled, propagate, handlers in loggers:
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        if logger.handlers != handlers:
            logger.handlers[:] = handlers
