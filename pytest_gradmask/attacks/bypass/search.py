"""Find out what BPDA should bypass: parts of a defense whose gradient is missing, or which hardly change an image.

Nothing is asked of the user and no source is read: the defense runs on a few images, and every submodule is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_gradmask.attacks.bypass.approximations import fit_affine, fit_convolution
from pytest_gradmask.attacks.bypass.bpda import FromImages, bypassed
from pytest_gradmask.attacks.bypass.hooks import hooked
from pytest_gradmask.attacks.oracle import parameter_dtype

#: On how many images to look, and in how many forwards where a defense is randomized.
SEARCH_IMAGES, SEARCH_FORWARDS = 8, 16
#: A bypass candidate's output differs from its input by at most this share of the input's norm.
CLOSENESS = 0.3
#: Least cosine between the true backward pass and that of the map which the forward pass nearly is.
_ALIGNED = 0.9

Approximations = dict[str, Any]


@dataclass(slots=True)
class _Seen:
    """What all calls of a submodule so far have in common, each with one tensor in and one out."""

    near: bool = True  # image in, nearly the same image out
    blocks: bool = True  # no gradient comes through
    picks: bool = True  # every value is passed on or set to zero, and not as a ReLU does
    same_shape: bool = True


def _nothing() -> _Seen:
    return _Seen(near=False, blocks=False, picks=False, same_shape=False)


def find_bypass(model: nn.Module, images: torch.Tensor, *, forwards: int = 1, seed: int = 0) -> Approximations:
    """Find what to bypass, and with what.

    - A submodule that looks like a **front end**: image in, nearly the same image out, within `CLOSENESS` of the
      input's norm on average. The identity stands in for it. What passes its very input on is none.
    - **Code before a submodule** that is no submodule of its own: what comes in is nearly the images, up to a scale
      and an offset for each channel, but their gradient does not come out that way. That map of the images stands in.
    - A submodule, or code before one, that **blocks the gradient** and keeps height and width: a small convolutional
      network is fitted to what it does. Where none fits, the identity stands in if the shape is kept.
    - An **activation that picks** some of its inputs and sets the others to zero (k-WTA; Xiao, Zhong and Zheng 2020):
      a ReLU stands in.

    Of nested candidates of the first kind the outermost is taken, of those that block a gradient the innermost.

    Args:
        model: the defense, in eval mode.
        images: N x C x H x W; eight are enough.
        forwards: passes to watch; a randomized ensemble shows its members one at a time.
        seed: of the fits. The model's own random numbers come from the global generators.

    Returns:
        Dotted name of each submodule to bypass, in the order of ``model.named_modules()``, with its substitute, as
        `bypassed` takes them.
    """
    images = images.detach().to(parameter_dtype(model), copy=True)
    try:
        seen = _observe(model, images, forwards)
    except Exception:  # some models refuse images that need a gradient
        seen = _observe(model, images, forwards, differentiate=False)
    near = [name for name, each in seen.items() if each.near]
    blocking = [name for name, each in seen.items() if each.blocks]
    found: Approximations = {name: None for name in near if not _inside(name, near)}
    for name, each in seen.items():
        if _covered(name, found):
            continue
        if each.blocks and not any(_inside(other, [name]) for other in blocking):
            approximation = fit_convolution(*_pairs(model, name, images, forwards), seed)
            if approximation is not None or each.same_shape:
                found[name] = approximation
        elif each.picks:
            found[name] = torch.relu
    found |= _before(model, images, forwards, found, seed)
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _covered(name: str, found: Approximations) -> bool:
    return name in found or _inside(name, found)


def _observe(model: nn.Module, images: torch.Tensor, forwards: int, *, differentiate: bool = True) -> dict[str, _Seen]:
    """Watch every submodule over some passes; without ``differentiate``, none blocks a gradient."""
    seen: dict[str, _Seen] = {}
    entered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def enter(name: str, inputs: tuple[Any, ...]) -> tuple[torch.Tensor] | None:
        seen.setdefault(name, _Seen())
        entered.pop(name, None)
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or not inputs[0].is_floating_point():
            seen[name] = _nothing()
            return None
        given = inputs[0].clone()  # in the graph, if there is one
        if differentiate and not given.requires_grad:
            given.requires_grad_(True)
        entered[name] = given, given.clone()  # the submodule may write into what it gets
        return (entered[name][1],)

    def leave(name: str, output: Any) -> None:
        if name not in entered:
            return
        given, argument = entered.pop(name)
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            seen[name] = _nothing()
            return
        each, value, result = seen[name], given.detach(), output.detach()
        same = result.shape == value.shape
        image = value.shape[1:] == images.shape[1:]
        passed_on = output is argument and torch.equal(result, value)
        each.near &= same and image and not passed_on and _distance(result, value) <= CLOSENESS
        each.blocks &= differentiate and not bool(_pulled_back(output, given).any())
        each.picks &= same and not image and _picks(result, value)
        each.same_shape &= same

    with hooked(model, enter, leave), torch.set_grad_enabled(differentiate):
        for _ in range(forwards):
            model(images.clone())
    return {name: seen[name] for name, _ in model.named_modules() if name in seen}


def _before(model: nn.Module, images: torch.Tensor, forwards: int, found: Approximations, seed: int) -> Approximations:
    """Code between the images and the first submodule that is not bypassed, or the first in that one, and so on."""
    more: Approximations = {}
    entered: dict[str, torch.Tensor] = {}
    left: list[str] = []

    def enter(name: str, inputs: tuple[Any, ...]) -> None:
        image = bool(inputs) and isinstance(inputs[0], torch.Tensor) and inputs[0].ndim == 4
        if image and not left and not _covered(name, found):
            entered[name] = inputs[0].clone()

    def leave(name: str, _: Any) -> None:
        if name in entered:
            left.append(name)

    rewired = bypassed(model, found)
    with hooked(model, enter, leave), torch.enable_grad():
        for _ in range(forwards):
            entered.clear()
            left.clear()
            point = images.clone().requires_grad_(True)
            try:
                rewired(point)
            except Exception:  # as above
                return more
            for name, given in entered.items():
                if name in more:
                    break
                approximation = _instead(given, point, seed)
                if approximation is not None:
                    more[name] = FromImages(approximation)
                    break
    return more


def _instead(given: torch.Tensor, point: torch.Tensor, seed: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A map from the images to what a submodule is given, or None if the gradient is fine as it is."""
    if given.shape[2:] != point.shape[2:]:
        return None
    true = _pulled_back(given, point)
    if given.shape == point.shape:
        affine, error = fit_affine(point.detach(), given.detach())
        if error <= CLOSENESS:
            return affine if _cosine(true, _pulled_back(affine(point), point)) < _ALIGNED else None
    return None if bool(true.any()) else fit_convolution(point.detach(), given.detach(), seed)


def _pairs(model: nn.Module, name: str, images: torch.Tensor, forwards: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a submodule makes of what it is given."""
    given: list[torch.Tensor] = []
    made: list[torch.Tensor] = []

    def enter(each: str, inputs: tuple[Any, ...]) -> None:
        if each == name:
            given.append(inputs[0].clone())

    def leave(each: str, output: Any) -> None:
        if each == name:
            made.append(output.clone())

    with hooked(model, enter, leave), torch.no_grad():
        for _ in range(forwards):
            model(images.clone())
    return torch.cat(given), torch.cat(made)


def _distance(output: torch.Tensor, given: torch.Tensor) -> float:
    change = (output.float() - given.float()).flatten(1).norm(dim=1)
    return float((change / given.float().flatten(1).norm(dim=1).clamp_min(1e-12)).mean())


def _picks(output: torch.Tensor, given: torch.Tensor) -> bool:
    zero = output == 0
    return bool((zero | (output == given)).all() & (zero & (given > 0)).any() & ~zero.all())


def _pulled_back(output: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Gradient of a random functional of ``output`` with respect to ``source``; zeros where there is none."""
    if not output.requires_grad:
        return torch.zeros_like(source)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(output.shape, generator=generator).to(output)
    try:
        (gradient,) = torch.autograd.grad(output, source, direction, retain_graph=True, allow_unused=True)
    except Exception:  # the defense is not ours: a backward pass that raises lets no gradient through
        return torch.zeros_like(source)
    return torch.zeros_like(source) if gradient is None else gradient


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))
