"""Code with a backward pass of its author, differentiated through its own forward pass.

The backward pass of a `torch.autograd.Function`, or of an operator that is registered with `torch.library.custom_op`,
is whatever its author wrote. The forward pass is code like any other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pytest_gradmask.attacks.bypass.operations.arguments import tensors_in
from pytest_gradmask.attacks.bypass.operations.patches import Patch

#: ``Function.apply``, which runs both passes.
APPLY = Patch(Function, "apply")


class Context:
    """What the forward pass of a function may ask of its ``ctx``. Nothing of it is needed."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(each, Tensor) and each.requires_grad for each in arguments)
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_dirty(self, *_: Any) -> None: ...

    def mark_non_differentiable(self, *_: Any) -> None: ...

    def set_materialize_grads(self, _: bool) -> None: ...


def through_forward(cls: type[Function], arguments: tuple[Any, ...]) -> Any:
    """Run the forward pass of a function as plain code. It may take a ``ctx``, or leave it to ``setup_context``."""
    forward: Callable[..., Any] = cls.forward
    if cls.setup_context is not Function.setup_context:
        return forward(*arguments)
    return forward(Context(arguments), *arguments)


def is_of_torch(cls: type[Function]) -> bool:
    """Whether a function comes with torch. Those are right, and some do more than to compute."""
    return cls.__module__.partition(".")[0] in (torch.__name__, __name__.partition(".")[0])


def operator_code(function: object, arguments: Any) -> tuple[str, Callable[..., Any]] | None:
    """The name of an operator of `torch.library.custom_op`, and its code in Python; None for other functions.

    Operators of torch and those in C++ have no such code.
    """
    registry = sys.modules.get("torch._library.custom_ops")
    if registry is None or not isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return None
    name = str(getattr(function, "_qualified_op_name", "") or function._schema.name)
    definition = getattr(registry, "OPDEFS", {}).get(name)
    kernels = getattr(definition, "_backend_fns", None)
    if not kernels:
        return None
    device = next((each.device.type for each in tensors_in(arguments)), None)
    code = kernels.get(device) or kernels.get(None)
    return None if code is None else (name, code)
