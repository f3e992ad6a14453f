"""The tensors among the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_CONTAINERS = (list, tuple)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, _CONTAINERS):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The same nested arguments with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _CONTAINERS):
        changed = [mapped(change, each) for each in value]
        # A named tuple takes its fields one by one.
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    if isinstance(value, dict):
        return {key: mapped(change, each) for key, each in value.items()}
    return value


def tracked(tensor: Tensor) -> bool:
    """Whether its graph may lead to the images. A leaf that requires a gradient is a number of the defense's own."""
    tensor = whole(tensor)
    return tensor.requires_grad and not tensor.is_leaf


def has_graph(tensor: Tensor) -> bool:
    """Whether autograd records what happens to a tensor."""
    return whole(tensor).requires_grad


def cut(tensor: Tensor) -> Tensor:
    """The same numbers without a graph."""
    return tensor.detach() if has_graph(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself. Inside `torch.vmap`, a tensor stands for parts of another: the other, which has the graph.

    Only of the other can numbers be asked, to decide what to do.
    """
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def name_of(function: Callable[..., Any]) -> str:
    """The name of an operation. An overload of an operator has one of its own, such as ``round.default``."""
    return function.__name__.partition(".")[0]


def in_place(name: str) -> bool:
    """Whether an operation of this name, such as ``round_``, writes into its first argument."""
    return name.endswith("_") and not name.endswith("__")


def views_bits(args: Any, kwargs: Any) -> bool:
    """Whether the arguments of ``view`` ask for another type: for the same bits, and not for the same numbers."""
    return any(isinstance(each, torch.dtype) for each in (*args[1:], *kwargs.values()))


def writes_into_leaf(name: str, args: Any) -> bool:
    """Whether an operation changes a parameter in place, which autograd would refuse to record."""
    writes = in_place(name) or name.startswith("__i") or name == "__setitem__"
    return writes and isinstance(args[0], Tensor) and args[0].requires_grad and args[0].is_leaf
