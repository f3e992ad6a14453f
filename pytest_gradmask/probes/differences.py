"""Derivatives by autograd against differences of the function itself: the arithmetic of the derivative check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.threat import per_image

#: From tensors to tensors.
Function = Callable[[Sequence[Tensor]], list[Tensor]]

#: Changes below this multiple of what points a thousandth of a step apart show are lost in rounding.
RESOLVED, _NEIGHBOUR = 16.0, 1e-3
#: Share of directions that have to be measured.
_ENOUGH = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A module whose derivatives are compared, and how.

    Attributes:
        model: the module.
        inside: the context in which it, and each part of it, runs.
        dtype: of its inputs.
        step: from a point to the next, as a share of the size of the input.
        kink: difference of the slopes ahead and behind, as a share of their size, above which a direction meets a kink
            or a step, and is not measured.
        disagree: median error of directional derivatives, as a share of their size, above which they disagree.
    """

    model: nn.Module
    inside: Callable[[], AbstractContextManager[None]]
    dtype: torch.dtype
    step: float
    kink: float
    disagree: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Directional derivatives of S functions in D directions; both D x S.

    Attributes:
        promised: by autograd.
        measured: by central differences; NaN in directions that meet a kink or a step, or are lost in rounding.
        size: of the derivatives of each function, S.
    """

    promised: Tensor
    measured: Tensor
    size: Tensor

    def errors(self) -> Tensor:
        """Median error of each function, S, as a share of the size; NaN if few directions are measured."""
        errors = (self.promised - self.measured).abs() / self.size
        enough = (~errors.isnan()).sum(0) >= _ENOUGH * len(errors)
        return errors.nanmedian(0).values.masked_fill(~enough, float("nan"))

    def cosine(self) -> float:
        """Of the two gradients, estimated over all functions and directions that were measured; 0 without any."""
        known = ~self.measured.isnan()
        promised, measured = ((each / self.size)[known] for each in (self.promised, self.measured))
        return float(promised @ measured / (promised.norm() * measured.norm()).clamp_min(1e-300))

    def is_step(self) -> bool:
        """Whether the functions do not change at all in most of the directions that were measured."""
        known = ~self.measured.isnan()
        flat = self.measured.abs() < 1e-6 * self.size
        return bool(2 * int((flat & known).sum()) > int(known.sum()))


def compare(promised: Tensor, ahead: Tensor, behind: Tensor, floor: Tensor, kink: float) -> Comparison:
    """Compare derivatives by autograd with slopes.

    Args:
        promised: D x S, directional derivatives by autograd.
        ahead, behind: D x S, slopes from the point to the next one in the direction, and from the one before it.
        floor: S, sizes below which nothing can be measured.
        kink: as in `Subject`.
    """
    measured = (ahead + behind) / 2
    # The median, because a step that lies between two points looks like a huge slope.
    size = torch.maximum(promised.square().mean(0).sqrt(), 1.5 * measured.abs().median(0).values)
    kept = ((ahead - behind).abs() <= kink * size) & (size > floor) & size.isfinite()
    return Comparison(promised, measured.masked_fill(~kept, float("nan")), size.clamp_min(1e-300))


def backward(function: Function, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of the weighted sum of all outputs with respect to each input; zeros where none arrives.

    By ``.backward()`` where ``autograd.grad`` is refused, as by re-entrant checkpoints.
    """
    try:
        taken = partial(torch.autograd.grad, allow_unused=True)
        return at_second_try(partial(_backward, function, inputs, weights, taken))
    except RuntimeError:
        return _backward(function, inputs, weights, _accumulated)


def _backward(
    function: Function, inputs: Sequence[Tensor], weights: Sequence[Tensor], differentiate: Callable[..., Any]
) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_(True) for each in inputs]
    with torch.enable_grad():
        outputs = function([leaf * 1 for leaf in leaves])  # a function may write into its input, but not into a leaf
        pairs = [(out, weight.to(out)) for out, weight in zip(outputs, weights, strict=True) if out.requires_grad]
        found = [None] * len(leaves)
        if pairs:
            found = differentiate([out for out, _ in pairs], leaves, [weight for _, weight in pairs])
    return [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)]


def _accumulated(outputs: Sequence[Tensor], leaves: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor | None]:
    torch.autograd.backward(outputs, weights)
    return [leaf.grad for leaf in leaves]


@dataclass(frozen=True, slots=True)
class Differences:
    """Slopes of a function in D directions; each of its entries has a list with a tensor for every in- or output.

    Attributes:
        directions: D of them.
        ahead, behind: the slopes of the outputs.
        noise: changes of the outputs between neighbouring points, and at least by rounding, as slopes over the step.
    """

    directions: list[list[Tensor]]
    ahead: list[list[Tensor]]
    behind: list[list[Tensor]]
    noise: list[Tensor]


def differences(
    function: Function, inputs: Sequence[Tensor], step: float, directions: int, generator: torch.Generator
) -> Differences:
    """Evaluate a function at the inputs, and on both sides of them in random normal directions.

    Costs two forwards a direction, and two more.
    """
    found = Differences([], [], [], [])
    with torch.no_grad():
        here = _evaluate(function, inputs)
        for number in range(directions):
            ways = [torch.randn(each.shape, generator=generator).to(each) for each in inputs]
            up, down = (
                _evaluate(function, [each + sign * step * way for each, way in zip(inputs, ways, strict=True)])
                for sign in (1, -1)
            )
            found.directions.append(ways)
            found.ahead.append([(after - now) / step for after, now in zip(up, here, strict=True)])
            found.behind.append([(now - before) / step for now, before in zip(here, down, strict=True)])
            if number == 0:
                near = [each + _NEIGHBOUR * step * way for each, way in zip(inputs, ways, strict=True)]
                near = _evaluate(function, near)
                rounding = torch.finfo(inputs[0].dtype).eps
                found.noise.extend(
                    # Outputs that do not change at all are rounded, too.
                    torch.maximum(RESOLVED * (other - now).abs(), rounding * _largest(now)) / step
                    for other, now in zip(near, here, strict=True)
                )
    return found


def _largest(outputs: Tensor) -> Tensor:
    """The largest absolute value of each image, in a shape that goes with that of the outputs."""
    sizes = outputs.abs()
    if sizes.ndim < 2 or sizes.numel() == 0:
        return sizes
    return per_image(sizes.flatten(1).amax(1), sizes)


def _evaluate(function: Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [each.double().clone() for each in function([each.clone() for each in inputs])]


def compare_module(
    subject: Subject, function: Function, inputs: Sequence[Tensor], weights: Sequence[Tensor],
    generator: torch.Generator, directions: int,
) -> Comparison:  # fmt: skip
    """Compare derivatives of weighted sums of all outputs: with these weights, and with random signs before them."""
    scale = max(float(each.double().square().mean().sqrt()) for each in inputs)
    step = subject.step * (scale or 1.0)
    seen = differences(function, inputs, step, directions, generator)
    columns = []
    for number in range(2):
        if number:
            weights = [each * (torch.randn(each.shape, generator=generator).to(each).sign()) for each in weights]
        gradients = [each.double() for each in backward(function, inputs, weights)]
        promised = torch.stack([_dot(gradients, each) for each in seen.directions])
        ahead, behind = (torch.stack([_dot(weights, each) for each in side]) for side in (seen.ahead, seen.behind))
        floor = sum(((n * w.double()).norm() for n, w in zip(seen.noise, weights, strict=True)), promised.new_zeros(()))
        columns.append((promised, ahead, behind, floor))
    promised, ahead, behind, floor = (torch.stack(each, -1) for each in zip(*columns, strict=True))
    return compare(promised, ahead, behind, floor, subject.kink)


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]).sum()
