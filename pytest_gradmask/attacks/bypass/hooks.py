"""Hooks on the inputs and outputs of all submodules of a model while it runs."""

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
        model: has no hook itself, only its submodules have. All hooks are removed at the end.
        enter: gets the dotted name of a submodule and its inputs. It returns other inputs, or None.
        leave: gets the dotted name and the output.
    """
    hooks = []
    for name, module in model.named_modules():
        if name:
            # Default arguments bind the current name: the variable changes with the loop.
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: enter(name, inputs)))
            hooks.append(module.register_forward_hook(lambda _, inputs, output, name=name: leave(name, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
