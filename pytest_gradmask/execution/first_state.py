"""The state that a model had before an audit, put back as often as needed: as good as a fresh copy for each query."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.execution.model_state import overwrite

#: What torch itself keeps in a module, and the ``forward`` that a bypass replaces for a while.
_TORCHS = {*vars(nn.Module()), "forward"}


class FirstState:
    """Puts a model back into the state of an untouched copy.

    The state is all that its modules hold: parameters, buffers, modes, and attributes of any type. What a model keeps
    elsewhere (in global variables, in files) cannot be put back. The model itself changes its state, and no copy takes
    its place, because attacks are made of its modules: members of an ensemble, bypassed parts, models of the user's.

    Args:
        model: what an audit asks.
        untouched: a deep copy of it, which is never asked.

    Raises:
        ValueError: the copy has other modules than the model.
    """

    def __init__(self, model: nn.Module, untouched: nn.Module) -> None:
        self._pairs = list(zip(model.modules(), untouched.modules(), strict=True))
        self._tensors = [_tensors(module) for module, _ in self._pairs]
        self._attributes = [dict(vars(module)) for module, _ in self._pairs]

    def put_back(self) -> None:
        """To be called between two queries, not during one."""
        # To what the attributes of a copy refer where they refer to its modules and tensors.
        memo: dict[int, Any] = {id(before): module for module, before in self._pairs}
        first = [_tensors(before) for _, before in self._pairs]
        for (module, _), tensors, kept in zip(self._pairs, self._tensors, first, strict=True):
            for name, tensor in tensors.items():
                memo[id(kept[name])] = tensor
                _put_back_tensor(module, name, tensor, kept[name])
        for (module, before), tensors in zip(self._pairs, self._tensors, strict=True):
            if not isinstance(module, torch.jit.ScriptModule):  # it holds tensors alone
                _put_back_attributes(module, before, tensors, memo)

    def undo(self) -> None:
        """Give the modules their own attributes again, where `put_back` has given them copies."""
        for (module, _), attributes in zip(self._pairs, self._attributes, strict=True):
            vars(module).update({name: value for name, value in attributes.items() if name not in _TORCHS})


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _put_back_tensor(module: nn.Module, name: str, tensor: Tensor, before: Tensor) -> None:
    if getattr(module, name, None) is not tensor:
        setattr(module, name, tensor)
    overwrite(tensor.data, before.to(tensor.device))  # a graph that still holds the tensor may be differentiated


def _put_back_attributes(
    module: nn.Module, before: nn.Module, tensors: dict[str, Tensor], memo: dict[int, Any]
) -> None:
    for name in [name for name in module._buffers if name not in tensors]:  # filled or added since
        module._buffers[name] = None
        if name not in before._buffers:
            del module._buffers[name]
    mine, first = vars(module), vars(before)
    for name in mine.keys() - first.keys() - _TORCHS:  # new since
        del mine[name]
    for name, value in first.items():
        if name not in _TORCHS:
            mine[name] = copy.deepcopy(value, memo)
    module.training = before.training
