"""An audit restores the process and the models to the state in which it found them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.execution.generators import random_state_kept
from pytest_gradmask.execution.model_state import model_states_restored
from pytest_gradmask.execution.surroundings import surroundings_restored


def check_weights(models: Sequence[nn.Module]) -> None:
    """Refuse weights with which nothing can be computed, or no gradient.

    Raises:
        DefenseError: a parameter or buffer was made under `torch.inference_mode`, is on the device meta, or is
            still without a shape (of a lazy module).
    """
    for model in models:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if is_lazy(tensor):
                raise DefenseError(
                    f"{type(model).__name__}: {name!r} has no shape yet, because its module is lazy; call the "
                    "model once with a batch of images"
                )
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
    """Move models to a device. On exit, even after an error, move each back. A model may contain another.

    Parameters and buffers get the memory back that they had, and nothing is copied: the device may be lost by then.
    """
    check_weights(models)
    devices = [next((tensor.device for tensor in (*model.parameters(), *model.buffers())), device) for model in models]
    modules = list({module: None for model in models for module in model.modules()})
    parameters = list({parameter: None for model in models for parameter in model.parameters()})
    owned = [
        (module, name, tensor)
        for module in modules
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    memory = [(tensor, tensor.data) for _, _, tensor in owned]  # with all parameters
    gradients = [(each, each.grad, each.grad.data) for each in parameters if each.grad is not None]
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None  # it has to be where its parameter is
        for tensor, data in memory:
            tensor.data = data
        for parameter, grad, data in gradients:
            grad.data, parameter.grad = data, grad
        for module, name, tensor in owned:
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
        for model, original in zip(models, devices, strict=True):
            model.to(original)  # whatever a model of the user's keeps elsewhere


def lost(device: torch.device) -> bool:
    """Whether nothing can be computed on a device any more."""
    if device.type == "cpu":
        return False
    try:
        return torch.ones(1, device=device).add(1).cpu().item() != 2
    except RuntimeError as error:
        return not out_of_memory(error)


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

    The settings of the process are those of `surroundings`. The state of a model is its train/eval flags, its hooks,
    submodules, parameters and buffers with their values, and ``requires_grad`` and ``.grad`` of its parameters. Other
    attributes are left as they are. Inside, parameters require no gradient: attacks differentiate with respect to the
    images only.

    Raises:
        DefenseError: see `check_weights`.
    """
    check_weights(models)
    parameters = list({parameter: None for model in models for parameter in model.parameters()})
    # Also make it the current GPU, for a defense that says "cuda" and means its device.
    gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with (
        model_states_restored(models), surroundings_restored(), gpu, random_state_kept(device),
        _checkpoints_differentiable(),
    ):  # fmt: skip
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
