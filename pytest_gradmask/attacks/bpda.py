"""BPDA: replace parts of a defense on the backward pass, or find out which parts to replace.

Backward pass differentiable approximation (Athalye, Carlini and Wagner 2018): the forward pass stays that of the
defense; on the backward pass a submodule is taken for the identity, or for a differentiable substitute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.oracle import parameter_dtype

#: A bypass candidate's output differs from its input by at most this share of the input's norm.
CLOSENESS = 0.3

Forward = Callable[..., Any]


class _StraightThrough(torch.autograd.Function):
    """Value of one tensor, gradient of another."""

    @staticmethod
    def forward(ctx: Any, surrogate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class Rewired(nn.Module):
    """A model some of whose submodules run another forward, but only while this wrapper runs the model.

    Args:
        model: left as it is between calls.
        forwards: for each dotted name, a function from the submodule's forward to the one to run instead.
    """

    def __init__(self, model: nn.Module, forwards: Mapping[str, Callable[[Forward], Forward]]) -> None:
        super().__init__()
        self.model = model
        self._forwards = dict(forwards)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        modules = dict(self.model.named_modules())
        with _forwards_replaced({modules[name]: make for name, make in self._forwards.items()}):
            return self.model(images)  # type: ignore[no-any-return]


@contextmanager
def _forwards_replaced(forwards: Mapping[nn.Module, Callable[[Forward], Forward]]) -> Iterator[None]:
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, make in forwards.items():
            module.__dict__["forward"] = make(module.forward)
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def bypassed(model: nn.Module, substitutes: Mapping[str, Any]) -> Rewired:
    """The model with the same outputs, whose gradient skips the named submodules.

    Args:
        model: the defense.
        substitutes: dotted name of each submodule to bypass, with a differentiable function from its input to
            something shaped like its output, or None for the identity.
    """

    def straight_through(substitute: Any) -> Callable[[Forward], Forward]:
        def make(original: Forward) -> Forward:
            def forward(images: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():  # no graph through the submodule: BPDA is cheaper than the true gradient
                    value = original(images)
                surrogate = images if substitute is None else substitute(images)
                return _StraightThrough.apply(surrogate, value)  # type: ignore[no-any-return]

            return forward

        return make

    return Rewired(model, {name: straight_through(substitute) for name, substitute in substitutes.items()})


def removed(model: nn.Module, names: tuple[str, ...]) -> Rewired:
    """The model without the named submodules: their input is passed on. What remains is the backbone."""
    return Rewired(model, {name: lambda original: lambda images: images for name in names})


def find_bypass(model: nn.Module, images: torch.Tensor, forwards: int = 1) -> tuple[str, ...]:
    """Find submodules that look like a front end: image in, nearly the same image out.

    A candidate's input and output have the shape of the images and differ by at most `CLOSENESS` of the input's
    norm on average; what passes its very input on is none. Of nested candidates the outermost is kept.

    Args:
        model: the defense, in eval mode.
        images: N x C x H x W.
        forwards: passes to watch; a randomized ensemble shows its members one at a time.

    Returns:
        Dotted names, in the order of ``model.named_modules()``.
    """
    close: dict[str, bool] = {}
    entered: dict[str, torch.Tensor] = {}

    def enter(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and inputs[0].shape[1:] == images.shape[1:]:
                entered[name] = inputs[0].detach().clone()  # a front end may write into its input

        return hook

    def leave(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            before = entered.pop(name, None)
            same = False
            if before is not None and isinstance(output, torch.Tensor) and output.shape == before.shape:
                change = (output.float() - before.float()).flatten(1).norm(dim=1)
                same = bool((change / before.float().flatten(1).norm(dim=1).clamp_min(1e-12)).mean() <= CLOSENESS)
                same = same and not (output is inputs[0] and torch.equal(output, before))
            close[name] = close.get(name, True) and same

        return hook

    modules = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_pre_hook(enter(name)) for name, module in modules]
    hooks += [module.register_forward_hook(leave(name)) for name, module in modules]
    try:
        with torch.no_grad():
            for _ in range(forwards):
                model(images.to(parameter_dtype(model), copy=True))
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in model.named_modules() if close.get(name, False)]
    return tuple(name for name in names if not any(name.startswith(other + ".") for other in names))
