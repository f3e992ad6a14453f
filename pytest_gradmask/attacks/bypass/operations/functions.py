"""Custom autograd functions, differentiated through their own forward pass.

The backward pass of a `torch.autograd.Function` is whatever its author wrote. Its forward pass is code like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

#: ``run(function class, its own apply, arguments, options)`` returns the outputs.
Run = Callable[[type[Function], Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_running = threading.local()  # for each thread, so that other threads keep the functions that they know
_lock = threading.Lock()
_users = 0
_original = Function.__dict__["apply"]


class _Runs(Protocol):
    stack: list[Run]


def _stack() -> list[Run]:
    runs: _Runs = _running
    if not hasattr(_running, "stack"):
        runs.stack = []
    return runs.stack


def _apply(cls: type[Function], *arguments: Any, **options: Any) -> Any:
    own = _original.__get__(None, cls)
    stack = _stack()
    return stack[-1](cls, own, arguments, options) if stack else own(*arguments, **options)


@contextmanager
def functions_run_by(run: Run) -> Iterator[None]:
    """In this context and this thread, ``run`` is called in place of each ``Function.apply``."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            Function.apply = classmethod(_apply)
    _stack().append(run)
    try:
        yield
    finally:
        _stack().pop()
        with _lock:
            _users -= 1
            if not _users:
                Function.apply = _original


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
