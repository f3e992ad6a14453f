"""What a defense may change about its own modules during an audit: kept, and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn

#: Where a module keeps its parameters, buffers, submodules and hooks.
_TABLES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
#: Frozen TorchScript has none.
_FLAGS = ("training", "_is_full_backward_hook")


@contextmanager
def model_states_restored(models: Sequence[nn.Module]) -> Iterator[None]:
    """On exit, even after an error, restore the modules of models. Models may share modules.

    That is their train/eval flags, hooks, submodules, parameters and buffers with their values, and ``requires_grad``
    and ``.grad`` of parameters. Values need a copy of the weights: a defense may write to them in ways that leave no
    other trace.
    """
    modules = list({module: None for model in models for module in model.modules()})
    parameters = list({parameter: None for model in models for parameter in model.parameters()})
    buffers = [dict(module.named_buffers(recurse=False)) for module in modules]
    tables = [
        (table, dict(table))
        for module in modules
        for table in (vars(module).get(name) for name in _TABLES)
        if isinstance(table, dict)
    ]
    flags = [{name: getattr(module, name) for name in _FLAGS if hasattr(module, name)} for module in modules]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    tensors = [*parameters, *{buffer: None for named in buffers for buffer in named.values()}]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        for table, entries in tables:
            if _identities(table) != _identities(entries):
                table.clear()
                table.update(entries)
        for module, named, kept in zip(modules, buffers, flags, strict=True):
            if isinstance(module, torch.jit.ScriptModule):  # it has no tables of its own
                _set(module, named)
            _set(module, kept)
        for tensor, value in values:
            # A device may be lost. Weights that were moved there are then restored without it: see `isolation.moved`.
            with suppress(RuntimeError) if tensor.device.type != "cpu" else nullcontext():
                _set_value(tensor, value)
        for parameter, (requires_grad, grad) in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _identities(table: Mapping[str, object]) -> list[tuple[str, int]]:
    return [(name, id(value)) for name, value in table.items()]


def _set(module: nn.Module, attributes: Mapping[str, object]) -> None:
    for name, value in attributes.items():
        if getattr(module, name, None) is not value:
            setattr(module, name, value)


def _set_value(tensor: Tensor, value: Tensor) -> None:
    if _kind(tensor) != _kind(value):
        tensor.data = value
    else:
        with torch.no_grad():
            overwrite(tensor, value)


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Write other values into a tensor of the same shape, type and layout, unless it has them already."""
    if tensor.layout is torch.strided:
        if not torch.equal(tensor, value):
            tensor.copy_(value)
    # Sparse tensors cannot be compared, and `copy_` gives those in COO format other memory.
    elif tensor.layout is torch.sparse_coo and tensor._nnz() == value._nnz():
        tensor._indices().copy_(value._indices())
        tensor._values().copy_(value._values())
    else:
        tensor.copy_(value)
