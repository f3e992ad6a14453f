"""BPDA: replace parts of a defense on the backward pass. `attacks.bypass.search` finds out which parts.

Backward pass differentiable approximation (Athalye, Carlini and Wagner 2018, arXiv:1802.00420): the forward pass
stays that of the defense. On the backward pass, a submodule is replaced by the identity or by another differentiable
approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.approximations import Approximation
from pytest_gradmask.attacks.bypass.hooks import checkpoints_kept, inside_transform, plainly
from pytest_gradmask.checks import check_is, is_a, listed
from pytest_gradmask.defense import FromImages

Forward = Callable[..., Any]


class _StraightThrough(torch.autograd.Function):
    """Returns the value of one tensor, with the gradient of another."""

    generate_vmap_rule = True  # defenses may use `torch.vmap`

    @staticmethod
    def forward(approximated: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


#: Bound here, because operation-level BPDA replaces ``Function.apply`` while it runs a defense.
_apply_straight_through = _StraightThrough.apply


def straight_through(approximated: Tensor, value: Tensor) -> Tensor:
    """The numbers of ``value`` with the gradient of ``approximated``, which has the same shape."""
    return _apply_straight_through(approximated, value)  # type: ignore[no-any-return]


#: Takes the forward of a submodule and the images of the model, and returns the forward that replaces it.
Rewire = Callable[[Forward, Tensor], Forward]


class Rewired(nn.Module):
    """A model in which some submodules have another forward, but only while this wrapper runs the model.

    Args:
        model: not changed between calls.
        rewires: for each dotted name of a submodule, the function that makes its other forward.
        used: modules that these call, which move between devices with the model.
    """

    def __init__(self, model: nn.Module, rewires: Mapping[str, Rewire], used: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.model = model
        self._rewires = dict(rewires)
        self._used = nn.ModuleList(used)

    def forward(self, images: Tensor) -> Tensor:
        modules = dict(self.model.named_modules())
        with plainly(), _forwards_replaced({modules[name]: rewire for name, rewire in self._rewires.items()}, images):
            # The model may write into its input, but approximations need the images that it was given.
            return self.model(images.clone())  # type: ignore[no-any-return]


@contextmanager
def _forwards_replaced(rewires: Mapping[nn.Module, Rewire], images: Tensor) -> Iterator[None]:
    before = {module: module.__dict__.get("forward") for module in rewires}
    try:
        for module, rewire in rewires.items():
            module.__dict__["forward"] = rewire(module.forward, images)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def bypassed(model: nn.Module, approximations: Mapping[str, Any]) -> Rewired:
    """The model with the same outputs, but with a gradient that skips the named submodules.

    Args:
        model: the defense.
        approximations: the dotted name of each submodule to bypass. Its value is a differentiable function from its
            input to a tensor of the shape of its output, None for the identity, or `FromImages` to bypass the code
            before it.

    Raises:
        InputError: an argument is of another type.
    """
    check_is("model", model, "a torch.nn.Module", nn.Module)
    check_is("approximations", approximations, "a mapping from names of submodules to functions or None", Mapping)
    wanted = "the name of a submodule with a function, None or FromImages()"
    listed("approximations", approximations.items(), wanted, _is_approximation)
    return Rewired(
        model,
        {
            name: _replace_input_gradient(approximation.function)
            if isinstance(approximation, FromImages)
            else _replace_gradient(approximation, alone=len(approximations) == 1)
            for name, approximation in approximations.items()
        },
        modules_in(approximations),
    )


def modules_in(approximations: Mapping[str, Any]) -> list[nn.Module]:
    """The approximations that are modules, with weights of their own, which must be where the model is."""
    functions = (each.function if isinstance(each, FromImages) else each for each in approximations.values())
    return [function for function in functions if isinstance(function, nn.Module)]


def _is_approximation(entry: Any) -> bool:
    name, approximation = entry
    return is_a(name, str) and (approximation is None or callable(approximation) or is_a(approximation, FromImages))


def _replace_gradient(approximation: Approximation | None, *, alone: bool) -> Rewire:
    """A submodule with the gradient of an approximation.

    Args:
        approximation: None is the identity.
        alone: whether no other submodule is replaced. Then the approximation may have checkpoints: what runs again in
            the backward pass is what ran before.
    """

    def rewire(original: Forward, _: Tensor) -> Forward:
        def forward(inputs: Tensor) -> Tensor:
            with torch.no_grad():  # no graph through the submodule: BPDA is cheaper than the true gradient
                value = original(inputs.clone())  # a front end may write into its input
            with checkpoints_kept() if alone else nullcontext():
                approximated = inputs if approximation is None else approximation(inputs)
            return straight_through(approximated, value)

        return forward

    return rewire


def _replace_input_gradient(function: Approximation | None) -> Rewire:
    """A submodule whose input has the gradient of a function of the images."""

    def rewire(original: Forward, images: Tensor) -> Forward:
        def forward(inputs: Tensor) -> Tensor:
            if not differentiated_by_defense(inputs):
                approximated = images if function is None else function(images)
                inputs = straight_through(approximated, inputs.detach())
            return original(inputs)  # type: ignore[no-any-return]

        return forward

    return rewire


def differentiated_by_defense(inputs: Tensor) -> bool:
    """Whether a defense asks a submodule for the gradient with respect to this input, to change an image with it.

    With another input it would get none. Images that an attack differentiates are never leaves here: `Rewired` clones
    them.
    """
    return inside_transform() or (inputs.requires_grad and inputs.is_leaf)


def removed(model: nn.Module, approximations: Mapping[str, Any]) -> Rewired:
    """The model with the approximations of `bypassed` on the forward pass, too. What remains is the backbone."""

    def replace_forward(approximation: Any) -> Rewire:
        def rewire(original: Forward, images: Tensor) -> Forward:
            if not isinstance(approximation, FromImages):
                return approximation or (lambda inputs: inputs)
            function = approximation.function or (lambda same: same)
            return lambda inputs: original(inputs if differentiated_by_defense(inputs) else function(images))

        return rewire

    rewires = {name: replace_forward(approximation) for name, approximation in approximations.items()}
    return Rewired(model, rewires, modules_in(approximations))


def described(approximations: Mapping[str, Any]) -> tuple[str, ...]:
    """The bypassed parts, in words for a report."""
    return tuple(
        f"all before {name}" if isinstance(approximation, FromImages) else name
        for name, approximation in approximations.items()
    )
