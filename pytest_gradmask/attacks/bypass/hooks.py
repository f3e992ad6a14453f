"""Watching what goes into and comes out of the submodules of a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(
    model: nn.Module,
    enter: Callable[[str, tuple[Any, ...]], Any] = lambda name, inputs: None,
    leave: Callable[[str, Any], None] = lambda name, output: None,
) -> Iterator[None]:
    """Call functions before and after each submodule runs.

    Args:
        model: not watched itself; no hook is left on it.
        enter: gets a submodule's dotted name and its inputs; returns other inputs, or None.
        leave: gets its name and its output.
    """
    hooks = []
    for name, module in model.named_modules():
        if name:
            # Bound by default arguments: the loop goes on to other names.
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: enter(name, inputs)))
            hooks.append(module.register_forward_hook(lambda _, inputs, output, name=name: leave(name, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
