"""Hooks on the inputs and outputs of all submodules of a model while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pytest_gradmask.execution.compiled import eagerly

Enter = Callable[[str, tuple[Any, ...]], Any]
Leave = Callable[[str, Any], None]


@contextmanager
def plainly() -> Iterator[None]:
    """Inside, compiled code and code in checkpoints run as if they were neither.

    Compiled code (`torch.compile`) may call hooks at another time or not at all. Code in a checkpoint
    (`torch.utils.checkpoint`) runs again in the backward pass, when a replaced forward is no longer there.
    """
    with eagerly(), _without_checkpoints():
        yield


class _NoCheckpoint:
    """Takes the place of torch's re-entrant checkpoint, and only runs the function."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *arguments: Any) -> Any:
        return function(*arguments)


def _no_checkpoint(*_: Any, **__: Any) -> Iterator[None]:
    """Takes the place of what torch does before and after a function in a checkpoint that is not re-entrant."""
    yield


#: Private names of torch 2.6 to 2.14. Where they are missing, checkpoints remain, and a search may find less.
_REPLACED = {
    "CheckpointFunction": _NoCheckpoint,
    "_checkpoint_without_reentrant_generator": _no_checkpoint,
    "_checkpoint_without_reentrant_generator_impl": _no_checkpoint,
}
#: What these names stand for in torch, once something of it has been replaced.
_ORIGINALS: dict[str, Any] = {}


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    module = sys.modules.get("torch.utils.checkpoint")
    found = {name: getattr(module, name) for name in _REPLACED if hasattr(module, name)}
    _ORIGINALS.update({name: value for name, value in found.items() if value is not _REPLACED[name]})
    with _names_set(module, {name: _REPLACED[name] for name in found}):
        yield


@contextmanager
def checkpoints_kept() -> Iterator[None]:
    """Inside of `plainly`, checkpoints are checkpoints again.

    For code that is the same when it runs again in the backward pass, because no forward in it is replaced.
    """
    with _names_set(sys.modules.get("torch.utils.checkpoint"), _ORIGINALS):
        yield


@contextmanager
def _names_set(module: object, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


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
    with ExitStack() as stack, plainly():
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
    # Inside a transform, tensors cannot be compared or kept.
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: None if inside_transform() else enter(name, inputs)),
        module.register_forward_hook(lambda _, inputs, output: None if inside_transform() else leave(name, output)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def inside_transform() -> bool:
    """Whether code runs inside a transform such as `torch.vmap`, where a tensor stands for a part of another."""
    return bool(torch._C._are_functorch_transforms_active())
