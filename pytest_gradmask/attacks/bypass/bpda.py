"""BPDA: replace parts of a defense on the backward pass. `attacks.bypass_search` finds out which parts.

Backward pass differentiable approximation (Athalye, Carlini and Wagner 2018): the forward pass stays that of the
defense; on the backward pass a submodule is taken for the identity, or for a differentiable substitute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class FromImages:
    """A substitute for all that happens between the defense's images and a submodule's input.

    For code that stands in a ``forward`` and is no submodule of its own: ``bypass={"net": FromImages()}`` takes what
    ``net`` is given for the images themselves, or for ``function(images)``.

    Attributes:
        function: differentiable, from the images to something shaped like the submodule's input; None: the identity.
    """

    function: Callable[[torch.Tensor], torch.Tensor] | None = None


class _StraightThrough(torch.autograd.Function):
    """Value of one tensor, gradient of another."""

    @staticmethod
    def forward(ctx: Any, surrogate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


#: From a submodule's forward and the images the model was given to the forward to run instead.
Rewire = Callable[[Forward, torch.Tensor], Forward]


class Rewired(nn.Module):
    """A model some of whose submodules run another forward, but only while this wrapper runs the model.

    Args:
        model: left as it is between calls.
        forwards: for each dotted name, what makes the forward to run instead.
    """

    def __init__(self, model: nn.Module, forwards: Mapping[str, Rewire]) -> None:
        super().__init__()
        self.model = model
        self._forwards = dict(forwards)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        modules = dict(self.model.named_modules())
        makers = {modules[name]: make for name, make in self._forwards.items()}
        with _forwards_replaced(makers, images):
            # The model may write into its input, and substitutes must see what it was given.
            return self.model(images.clone())  # type: ignore[no-any-return]


@contextmanager
def _forwards_replaced(makers: Mapping[nn.Module, Rewire], images: torch.Tensor) -> Iterator[None]:
    own = {module: module.__dict__.get("forward") for module in makers}
    try:
        for module, make in makers.items():
            module.__dict__["forward"] = make(module.forward, images)
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def bypassed(model: nn.Module, approximations: Mapping[str, Any]) -> Rewired:
    """The model with the same outputs, whose gradient skips the named submodules.

    Args:
        model: the defense.
        approximations: dotted name of each submodule to bypass, with a differentiable function from its input to
            something shaped like its output, None for the identity, or `FromImages` to bypass what comes before it.
    """

    def before(function: Callable[[torch.Tensor], torch.Tensor] | None) -> Rewire:
        def make(original: Forward, images: torch.Tensor) -> Forward:
            def forward(value: torch.Tensor) -> torch.Tensor:
                surrogate = images if function is None else function(images)
                return original(_StraightThrough.apply(surrogate, value.detach()))  # type: ignore[no-any-return]

            return forward

        return make

    def instead(approximation: Callable[[torch.Tensor], torch.Tensor] | None) -> Rewire:
        def make(original: Forward, _: torch.Tensor) -> Forward:
            def forward(images: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():  # no graph through the submodule: BPDA is cheaper than the true gradient
                    value = original(images.clone())  # a front end may write into its input
                surrogate = images if approximation is None else approximation(images)
                return _StraightThrough.apply(surrogate, value)  # type: ignore[no-any-return]

            return forward

        return make

    return Rewired(
        model,
        {
            name: before(approximation.function) if isinstance(approximation, FromImages) else instead(approximation)
            for name, approximation in approximations.items()
        },
    )


def removed(model: nn.Module, approximations: Mapping[str, Any]) -> Rewired:
    """The model without what `bypassed` bypasses: substitutes run forward, too. What remains is the backbone."""

    def make_for(approximation: Any) -> Rewire:
        def make(original: Forward, images: torch.Tensor) -> Forward:
            if isinstance(approximation, FromImages):
                return lambda _: original(images if approximation.function is None else approximation.function(images))
            return approximation or (lambda given: given)

        return make

    return Rewired(model, {name: make_for(approximation) for name, approximation in approximations.items()})


def described(approximations: Mapping[str, Any]) -> tuple[str, ...]:
    """What is bypassed, in words for a report."""
    return tuple(
        f"all before {name}" if isinstance(approximation, FromImages) else name
        for name, approximation in approximations.items()
    )
