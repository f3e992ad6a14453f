"""An audit leaves no trace in the process or in the models it looks at."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from pytest_gradmask.randomness import random_state_kept


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


@contextmanager
def no_trace(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Restore on exit, whatever happens: random states, grad mode, default dtype, tracer, and each model's state.

    Of each model: train/eval flags, ``requires_grad`` and ``.grad`` of parameters, and the
    values of buffers. Inside, parameters need no gradient: attacks differentiate with respect to images only.
    """
    grad_mode, dtype, tracer = torch.is_grad_enabled(), torch.get_default_dtype(), sys.gettrace()
    modules = list({module: None for model in models for module in model.modules()})
    parameters = list({parameter: None for model in models for parameter in model.parameters()})
    buffers = [dict(module.named_buffers(recurse=False)) for module in modules]
    training = [module.training for module in modules]
    needs = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    values = [(buffer, buffer.detach().clone()) for named in buffers for buffer in named.values()]
    try:
        with random_state_kept(device):
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
        torch.set_grad_enabled(grad_mode)
        torch.set_default_dtype(dtype)
        if sys.gettrace() is not tracer:
            sys.settrace(tracer)
