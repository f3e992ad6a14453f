"""What the parts of a model were called with, and what gradients arrived at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pytest_gradmask.probes.differences import Function


@dataclass(slots=True)
class Call:
    """One call of a module or function.

    Attributes:
        leaves: everything that its arguments hold; tensors are copies.
        shape: how arguments are made of them.
        active: numbers of the leaves that it is differentiated by.
        outputs: how many floating-point tensors it returned.
        arrived: the gradients that arrived at them, by number.
    """

    leaves: list[Any]
    shape: Any
    active: list[int]
    outputs: int = 0
    arrived: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> Call:
        leaves, shape = tree_flatten((args, kwargs))
        floats = [number for number, leaf in enumerate(leaves) if _is_float(leaf)]
        active = [number for number in floats if leaves[number].requires_grad] or floats
        return cls([leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], shape, active)

    def arguments(self) -> list[Tensor]:
        """The tensors that it is differentiated by."""
        return [self.leaves[number] for number in self.active]

    def bound(self, run: Callable[..., Any], inside: Callable[[], AbstractContextManager[None]]) -> Function:
        """The call as a function of these tensors."""

        def function(tensors: Sequence[Tensor]) -> list[Tensor]:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
            for number, tensor in zip(self.active, tensors, strict=True):
                leaves[number] = tensor
            args, kwargs = tree_unflatten(leaves, self.shape)
            with inside():
                return _floats(run(*args, **kwargs))

        return function


@contextmanager
def recording(model: nn.Module, calls: dict[nn.Module, Call]) -> Iterator[None]:
    """Inside, keep the first call of each submodule."""

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if module not in calls:
            calls[module] = Call.of(args, kwargs)

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        call = calls[module]
        if not call.outputs:
            outputs = _floats(output)
            call.outputs = len(outputs)
            _watch(call, outputs)

    handles: list[Any] = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(leave, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(call: Call, outputs: Sequence[Tensor]) -> None:
    for number, output in enumerate(outputs):
        if output.requires_grad:
            output.register_hook(partial(_keep, call, number))


def _keep(call: Call, number: int, gradient: Tensor) -> None:
    call.arrived.setdefault(number, gradient.clone())


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if _is_float(leaf)]


def in_graph(outputs: Sequence[Tensor]) -> list[Any]:
    """Classes of the custom autograd functions in a graph."""
    nodes = [output.grad_fn for output in outputs]
    classes: dict[Any, None] = {}
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None and not function.__module__.startswith("torch."):
            classes[function] = None
        nodes += [each for each, _ in node.next_functions]
    return list(classes)


@contextmanager
def watching(function: Any, record: list[Call]) -> Iterator[None]:
    """Inside, keep the calls of an autograd function, and the gradients that arrive at it."""
    plain_forward, plain_backward = function.forward, function.backward
    with_context = function.setup_context is torch.autograd.Function.setup_context

    def forward(*args: Any, **kwargs: Any) -> Any:
        record.append(Call.of(args[1:] if with_context else args, kwargs))
        return plain_forward(*args, **kwargs)

    def watched(context: Any, *gradients: Any) -> Any:
        if record:
            for number, each in enumerate(gradients):
                if isinstance(each, Tensor):
                    record[0].arrived[number] = each.clone()
        return plain_backward(context, *gradients)

    before = {name: vars(function).get(name) for name in ("forward", "backward")}
    function.forward, function.backward = staticmethod(forward), staticmethod(watched)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                delattr(function, name)
            else:
                setattr(function, name, value)


class TensorHooks(TorchFunctionMode):
    """Notes hooks that are set on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.register_hook:
            self.seen.append(args[1])
        return function(*args, **(kwargs or {}))
