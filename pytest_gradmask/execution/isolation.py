"""An audit restores the process and the models to the state in which it found them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.generators import random_state_kept
from pytest_gradmask.execution.surroundings import surroundings_restored


def check_weights(models: Sequence[nn.Module]) -> None:
    """Refuse weights with which nothing can be computed, or no gradient.

    Raises:
        DefenseError: a parameter or buffer was made under `torch.inference_mode`, or is on the device meta.
    """
    for model in models:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_inference():
                raise DefenseError(
                    f"{type(model).__name__}: {name!r} was made under torch.inference_mode(), and gives no "
                    "gradient; make or load the model outside of it"
                )
            if tensor.is_meta:
                raise DefenseError(
                    f"{type(model).__name__}: {name!r} is on the device meta, which holds no values; load its weights"
                )


@contextmanager
def moved(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Move models to a device. On exit, even after an error, move each back. A model may contain another."""
    check_weights(models)
    devices = [next((tensor.device for tensor in (*model.parameters(), *model.buffers())), device) for model in models]
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model, original in zip(models, devices, strict=True):
            model.to(original)


@contextmanager
def _checkpoints_differentiable() -> Iterator[None]:
    """Let `torch.autograd.grad` differentiate re-entrant checkpoints (``checkpoint(..., use_reentrant=True)``).

    They refuse, because they also add to the ``.grad`` of parameters, which is not what ``autograd.grad`` promises.
    During an audit no parameter requires a gradient. So the gradient of the images is all that there is, and is right.
    AutoAttack's own attacks, too, call ``autograd.grad``.
    """
    name = "_is_checkpoint_valid"  # what checkpoints ask, in torch and in DeepSpeed
    refuses = getattr(torch.autograd, name, None)
    if refuses is None:
        yield
        return
    setattr(torch.autograd, name, lambda: True)
    try:
        yield
    finally:
        setattr(torch.autograd, name, refuses)


@contextmanager
def no_trace(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """On exit, even after an error, restore random states, settings of the process, and the state of each model.

    The settings of the process are those of `surroundings`. The state of a model is its train/eval flags,
    ``requires_grad`` and ``.grad`` of its parameters, and the values of its buffers. Inside, parameters require no
    gradient: attacks differentiate with respect to the images only.

    Raises:
        DefenseError: see `check_weights`.
    """
    check_weights(models)
    modules = list({module: None for model in models for module in model.modules()})
    parameters = list({parameter: None for model in models for parameter in model.parameters()})
    buffers = [dict(module.named_buffers(recurse=False)) for module in modules]
    training = [getattr(module, "training", None) for module in modules]  # frozen TorchScript has no such flag
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    values = [(buffer, buffer.detach().clone()) for named in buffers for buffer in named.values()]
    try:
        # Also make it the current GPU, for a defense that says "cuda" and means its device.
        gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with surroundings_restored(), gpu, random_state_kept(device), _checkpoints_differentiable():
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            if flag is not None:
                module.training = flag
        for parameter, (requires_grad, grad) in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for module, named in zip(modules, buffers, strict=True):
                for name, buffer in named.items():
                    if getattr(module, name, None) is not buffer:  # the model has replaced the buffer by another tensor
                        setattr(module, name, buffer)
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
