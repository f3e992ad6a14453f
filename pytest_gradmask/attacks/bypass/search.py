"""Find out what BPDA should bypass: parts of a defense that have no gradient, or that hardly change an image.

The search needs no input from the user and does not read the source code. It runs the defense on a few images and
observes every submodule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.approximations import Approximation, dequantized, fit_affine, fit_convolution
from pytest_gradmask.attacks.bypass.bpda import bypassed, differentiated_by_defense
from pytest_gradmask.attacks.bypass.hooks import hooked
from pytest_gradmask.attacks.oracle import parameter_dtype
from pytest_gradmask.defense import FromImages
from pytest_gradmask.execution.second_try import at_second_try

#: Number of images for the search, and number of forward passes if a defense is randomized.
SEARCH_IMAGES, SEARCH_FORWARDS = 8, 16
#: The output of a front end differs from its input by at most this share of the input's norm.
CLOSENESS = 0.3
#: Least cosine between the true gradient and the gradient of the affine map that the forward pass nearly is.
_ALIGNED = 0.9

Approximations = dict[str, Any]


@dataclass(slots=True)
class _Behaviour:
    """Properties of a submodule that hold in all of its calls so far. A call has one tensor as input and as output."""

    near_identity: bool = True  # the input is an image, and the output nearly the same image
    blocks_gradient: bool = True  # the gradient is zero, or its backward pass raises
    backward_raises: bool = False  # in any call
    sparsifies: bool = True  # each value is passed on or set to zero, and some positive values are set to zero
    keeps_shape: bool = True


def _no_candidate() -> _Behaviour:
    return _Behaviour(near_identity=False, blocks_gradient=False, sparsifies=False, keeps_shape=False)


def find_bypass(model: nn.Module, images: Tensor, *, forwards: int = 1, seed: int = 0) -> Approximations:
    """Find the parts of a defense to bypass, and an approximation for each.

    - A **front end** is a submodule whose input is an image and whose output is nearly the same image, within
      `CLOSENESS` of the input's norm on average. It is replaced by the identity. A submodule that returns its input
      unchanged does not need a bypass.
    - **Code before a submodule** can change the images without being a submodule itself. It is bypassed if its output
      is nearly the images, up to a scale and an offset for each channel, but has another gradient. It is replaced by
      this affine map.
    - A submodule, or code before one, can **block the gradient**. If it keeps height and width, a small convolutional
      network is fitted to it. If no network fits, it is replaced by the identity, provided that it keeps the shape.
    - A **sparsifying activation** passes some of its inputs on and sets the others to zero (k-WTA; Xiao, Zhong and
      Zheng 2020, arXiv:1905.10510). It is replaced by a ReLU.

    Of nested front ends the outermost is taken, and of nested submodules that block the gradient the innermost.

    Args:
        model: the defense, in eval mode.
        images: N x C x H x W; eight are enough.
        forwards: number of forward passes to observe. A randomized ensemble uses one member at a time.
        seed: of the fits. The model's own random numbers come from the global generators.

    Returns:
        The dotted name of each submodule to bypass, in the order of ``model.named_modules()``, with its approximation
        in the form that `bypassed` takes.
    """
    images = images.detach().to(parameter_dtype(model), copy=True)
    try:
        observed = at_second_try(partial(_observe, model, images, forwards))
    except Exception:  # some models refuse images that need a gradient
        observed = _observe(model, images, forwards, differentiate=False)
    front_ends = [name for name, behaviour in observed.items() if behaviour.near_identity]
    blocking = [name for name, behaviour in observed.items() if behaviour.blocks_gradient]
    found: Approximations = {name: None for name in front_ends if not _is_inside(name, front_ends)}
    for name, behaviour in observed.items():
        if _is_covered(name, found):
            continue
        if behaviour.blocks_gradient and not any(_is_inside(other, [name]) for other in blocking):
            approximation = dequantized(model.get_submodule(name)) or fit_convolution(
                *_inputs_and_outputs(model, name, images, forwards), seed
            )
            if approximation is not None or behaviour.keeps_shape:
                found[name] = approximation
        elif behaviour.sparsifies:
            found[name] = torch.relu
    found |= _find_code_before_submodules(model, images, forwards, found, seed)
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)


def _is_covered(name: str, found: Approximations) -> bool:
    return name in found or _is_inside(name, found)


def _observe(model: nn.Module, images: Tensor, forwards: int, *, differentiate: bool = True) -> dict[str, _Behaviour]:
    """Observe every submodule over some forward passes. Without ``differentiate``, none counts as blocking.

    A backward pass through the whole model follows each forward pass. Where it succeeds, no submodule's backward pass
    raises, even if autograd refused to differentiate the submodule alone. Checkpointing runs submodules without a
    graph at first. They run again, with one, in this backward pass, and are then observed again.
    """
    observed: dict[str, _Behaviour] = {}
    running: dict[str, tuple[Tensor, Tensor]] = {}
    differentiated: list[str] = []  # the gradient of a checkpoint runs it again, in the middle of the forward pass

    def enter(name: str, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
        if differentiated:
            return None
        observed.setdefault(name, _Behaviour())
        running.pop(name, None)
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
            observed[name] = _no_candidate()
            return None
        source = inputs[0].clone()  # part of the graph, if there is one
        if differentiate and not source.requires_grad:
            source.requires_grad_(True)
        running[name] = source, source.clone()  # the submodule may write into its argument
        return (running[name][1],)

    def leave(name: str, output: Any) -> None:
        if differentiated or name not in running:
            return
        source, argument = running.pop(name)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            observed[name] = _no_candidate()
            return
        behaviour, before, after = observed[name], source.detach(), output.detach()
        same_shape = after.shape == before.shape
        is_image = before.shape[1:] == images.shape[1:]
        unchanged = output is argument and torch.equal(after, before)
        behaviour.near_identity &= (
            same_shape and is_image and not unchanged and _relative_change(after, before) <= CLOSENESS
        )
        differentiated.append(name)
        gradient = _random_vjp(output, source) if differentiate else None
        differentiated.pop()
        behaviour.blocks_gradient &= differentiate and (gradient is None or not bool(gradient.any()))
        behaviour.backward_raises |= differentiate and gradient is None
        behaviour.sparsifies &= same_shape and not is_image and _sparsifies(after, before)
        behaviour.keeps_shape &= same_shape

    backward_works = True
    with hooked(model, enter, leave), torch.set_grad_enabled(differentiate):
        for _ in range(forwards):
            point = images.clone().requires_grad_(differentiate)
            output = model(point.clone())  # the model may write into its input
            backward_works &= differentiate and _backward_works(model, output)
    for behaviour in observed.values():
        behaviour.blocks_gradient &= not (behaviour.backward_raises and backward_works)
    return {name: observed[name] for name, _ in model.named_modules() if name in observed}


def _find_code_before_submodules(
    model: nn.Module, images: Tensor, forwards: int, found: Approximations, seed: int
) -> Approximations:
    """Approximations of code before a submodule, given those of submodules.

    Candidates are the first submodule that is not bypassed, the first submodule inside of it, and so on.
    """
    more: Approximations = {}
    entered: dict[str, Tensor | None] = {}
    left: list[str] = []
    differentiated: list[str] = []  # by the defense; what runs inside of it is part of how it changes the image

    def enter(name: str, inputs: tuple[Any, ...]) -> None:
        is_image = bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].ndim == images.ndim
        if not is_image or left or differentiated or _is_covered(name, found):
            return
        if differentiated_by_defense(inputs[0]):
            differentiated.append(name)
        else:
            # Without a graph, the code before it is not what stops the gradient, and another gradient would not help.
            entered[name] = inputs[0].clone() if torch.is_grad_enabled() else None

    def leave(name: str, _: Any) -> None:
        if name in differentiated:
            differentiated.remove(name)
        elif name in entered and not differentiated:
            left.append(name)

    rewired = bypassed(model, found)

    def ask(point: Tensor) -> Any:
        for noted in (entered, left, differentiated):
            noted.clear()
        return rewired(point)

    with hooked(model, enter, leave), torch.enable_grad():
        for _ in range(forwards):
            point = images.clone().requires_grad_(True)
            try:
                output = at_second_try(partial(ask, point))
            except Exception:  # some models refuse images that need a gradient
                return more
            whole = cache(partial(_backward_works, rewired, output))
            for name, inputs in entered.items():
                if name in more:
                    break
                approximation = None if inputs is None else _approximate_from_images(inputs, point, seed, whole)
                if approximation is not None:
                    more[name] = FromImages(approximation)
                    break
    return more


def _approximate_from_images(
    inputs: Tensor, point: Tensor, seed: int, backward_works: Callable[[], bool]
) -> Approximation | None:
    """A map from the images (``point``) to the input of a submodule; None if its gradient is right already.

    If the gradient cannot be taken, ``backward_works`` says whether the whole model has one.
    """
    if inputs.shape[2:] != point.shape[2:]:
        return None
    true_vjp = _random_vjp(inputs, point)
    if true_vjp is None:
        if backward_works():
            return None
        true_vjp = torch.zeros_like(point)
    if inputs.shape == point.shape:
        affine, error = fit_affine(point.detach(), inputs.detach())
        if error <= CLOSENESS:
            affine_vjp = _random_vjp(affine(point), point)
            return affine if affine_vjp is not None and _cosine(true_vjp, affine_vjp) < _ALIGNED else None
    return None if bool(true_vjp.any()) else fit_convolution(point.detach(), inputs.detach(), seed)


def _inputs_and_outputs(model: nn.Module, name: str, images: Tensor, forwards: int) -> tuple[Tensor, Tensor]:
    """All inputs of a submodule in some forward passes, and its outputs."""
    all_inputs: list[Tensor] = []
    all_outputs: list[Tensor] = []

    def enter(entered: str, inputs: tuple[Any, ...]) -> None:
        if entered == name:
            all_inputs.append(inputs[0].clone())

    def leave(left: str, output: Any) -> None:
        if left == name:
            all_outputs.append(output.clone())

    with hooked(model, enter, leave), torch.no_grad():
        for _ in range(forwards):
            model(images.clone())
    return torch.cat(all_inputs), torch.cat(all_outputs)


def _relative_change(output: Tensor, inputs: Tensor) -> float:
    """Norm of the change as a share of the input's norm, on average over the images."""
    change = (output.float() - inputs.float()).flatten(1).norm(dim=1)
    return float((change / inputs.float().flatten(1).norm(dim=1).clamp_min(1e-12)).mean())


def _sparsifies(output: Tensor, inputs: Tensor) -> bool:
    """Whether each value is kept or set to zero. A ReLU does not count: it sets no positive value to zero."""
    zero = output == 0
    return bool((zero | (output == inputs)).all() & (zero & (inputs > 0)).any() & ~zero.all())


def _random_vjp(output: Tensor, source: Tensor) -> Tensor | None:
    """Vector-Jacobian product of a fixed random vector: the gradient with respect to ``source``.

    Zeros where the graph does not lead to ``source``. None where autograd raises: that is not a gradient of zero.
    """
    if not output.requires_grad:
        return torch.zeros_like(source)
    try:
        (gradient,) = at_second_try(
            lambda: torch.autograd.grad(output, source, _direction(output), retain_graph=True, allow_unused=True)
        )
    except Exception:  # code of the user, or a part that must not be differentiated alone
        return None
    return torch.zeros_like(source) if gradient is None else gradient


def _backward_works(model: nn.Module, output: Any) -> bool:
    """Whether ``backward()`` succeeds from the output of a model. Gradients of parameters stay as they are."""
    if not isinstance(output, Tensor) or not output.requires_grad:
        return True
    parameters = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in parameters:
            parameter.grad = None
        at_second_try(lambda: output.backward(_direction(output), retain_graph=True))
    except Exception:  # code of the user
        return False
    finally:
        for parameter, gradient in parameters:
            parameter.grad = gradient
    return True


def _direction(output: Tensor) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))
