"""An audit leaves no trace in the process or in the models it looks at."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_gradmask.execution.generators import random_state_kept


@contextmanager
def moved(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Move models to a device, and on exit, whatever happens, each back to where it was. One may hold another."""
    homes = [next((tensor.device for tensor in (*model.parameters(), *model.buffers())), device) for model in models]
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model, home in zip(models, homes, strict=True):
            model.to(home)


def _default_device() -> torch.device:
    # torch.get_default_device raises in torch 2.6 where the default was set and unset.
    return torch.empty(0).device


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


#: What a defense, or a library that an attack uses, may set for the whole process: how to read it, how to set it.
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
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
)


@contextmanager
def _settings_kept() -> Iterator[None]:
    before = [read() for read, _ in _SETTINGS]
    with warnings.catch_warnings():  # and their filters, to which a library that is imported may add
        try:
            yield
        finally:
            for (read, write), value in zip(_SETTINGS, before, strict=True):
                if read() != value:  # some cost something even if set to what they are
                    write(value)


@contextmanager
def no_trace(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Restore on exit, whatever happens: random states, settings of the process, and each model's state.

    Of the process: grad mode, default dtype and device, threads, deterministic and cuDNN flags, tracer and profiler,
    warnings filters.
    Of each model: train/eval flags, ``requires_grad`` and ``.grad`` of parameters, and the
    values of buffers. Inside, parameters need no gradient: attacks differentiate with respect to images only.
    """
    modules = list({module: None for model in models for module in model.modules()})
    parameters = list({parameter: None for model in models for parameter in model.parameters()})
    buffers = [dict(module.named_buffers(recurse=False)) for module in modules]
    training = [module.training for module in modules]
    needs = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    values = [(buffer, buffer.detach().clone()) for named in buffers for buffer in named.values()]
    try:
        # The current GPU too, for a defense that says "cuda" and means the one it is on.
        gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with _settings_kept(), gpu, random_state_kept(device):
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
        for parameter, (requires_grad, grad) in zip(parameters, needs, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for module, named in zip(modules, buffers, strict=True):
                for name, buffer in named.items():
                    if getattr(module, name, None) is not buffer:  # the model has assigned another tensor
                        setattr(module, name, buffer)
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
