"""Hooks on the inputs and outputs of all submodules of a model while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

Enter = Callable[[str, tuple[Any, ...]], Any]
Leave = Callable[[str, Any], None]


def eagerly() -> AbstractContextManager[Any]:
    """Inside, functions and modules of `torch.compile` run their Python code.

    Compiled code may call hooks at another time or not at all. Each hook also counts against the number of versions
    that torch compiles, and beyond that limit the model of the user would stay slow.
    """
    compiler = sys.modules.get("torch._dynamo")  # not imported: nothing is compiled, and importing it takes seconds
    if compiler is None or torch.compiler.is_compiling():
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def is_script(module: nn.Module) -> bool:
    """Whether a module is TorchScript: scripted, traced or frozen."""
    return isinstance(module, torch.jit.ScriptModule)


def observable(model: nn.Module) -> dict[str, nn.Module]:
    """The submodules that can be observed, by dotted name: not those inside TorchScript, which runs without Python."""
    scripts = [name for name, module in model.named_modules() if is_script(module)]
    return {
        name: module
        for name, module in model.named_modules()
        if name and not any(name.startswith(f"{script}." if script else "") for script in scripts)
    }


@contextmanager
def hooked(
    model: nn.Module,
    enter: Enter = lambda name, inputs: None,
    leave: Leave = lambda name, output: None,
) -> Iterator[None]:
    """Call functions before and after each submodule runs.

    Args:
        model: has no hook itself, only its submodules have. All hooks are removed at the end. Inside TorchScript there
            are no hooks, but on a TorchScript module as a whole.
        enter: gets the dotted name of a submodule and its inputs. It returns other inputs, or None.
        leave: gets the dotted name and the output.
    """
    with ExitStack() as stack, eagerly():
        for name, module in observable(model).items():
            stack.enter_context(hooked_module(name, module, enter, leave))
        yield


@contextmanager
def hooked_module(
    name: str,
    module: nn.Module,
    enter: Enter = lambda name, inputs: None,
    leave: Leave = lambda name, output: None,
) -> Iterator[None]:
    """As `hooked`, for a single submodule."""
    if is_script(module):  # it refuses hooks
        before, original = module.__dict__.get("forward"), module.forward

        def forward(*inputs: Any, **options: Any) -> Any:
            changed = enter(name, inputs)
            output = original(*(inputs if changed is None else changed), **options)
            leave(name, output)
            return output

        module.__dict__["forward"] = forward
        try:
            yield
        finally:
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before
        return
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: enter(name, inputs)),
        module.register_forward_hook(lambda _, inputs, output: leave(name, output)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
