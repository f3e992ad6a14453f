"""Natural gradients of functions that saturate: far outside of a narrow range, their slope is nearly zero.

They have gradients of their own, and keep them, unless most elements are in the flat part. An honest network has most
of them in the steep part, or it could not be trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.operations.arguments import whole
from pytest_gradmask.attacks.bypass.operations.choices import TINY, Arguments, Options, deviation

#: A slope that is below this share of the steepest one is flat.
_FLAT = 1e-3
#: As a share of elements, more than this are flat where a function counts as saturated.
_MOST = 0.5
#: At least this share is beyond each end of a clamp. A ReLU that is written as a clamp has most elements at one end.
_EACH_END = 0.01
#: An exponential below this is flat: so are weights of what is far away, and probabilities of other classes.
_VANISHED = 1e-6
#: A softmax whose largest probability is nearer to one has the slope zero, but for rounding errors.
_CERTAIN = 1e-6


def spread(difference: Tensor) -> Tensor:
    """Mean size of a difference: the width of a soft step."""
    return difference.detach().abs().mean().clamp_min(TINY)


def soft_sign(numbers: Tensor) -> Tensor:
    """A tanh that is as wide as its input."""
    return torch.tanh(numbers / spread(numbers))


def soft_step(numbers: Tensor) -> Tensor:
    """A sigmoid that is as wide as its input."""
    return torch.sigmoid(numbers / spread(numbers))


def _share(elements: Tensor) -> float:
    return float(whole(elements).float().mean())


def _mostly(elements: Tensor) -> bool:
    return _share(elements) > _MOST


def _flat_tanh(numbers: Tensor) -> bool:
    """Whether most elements are where tanh is flat."""
    return _mostly(1 - torch.tanh(numbers.detach()) ** 2 < _FLAT)


def saturated_tanh(arguments: Arguments, _: Options) -> Tensor | None:
    """That of `soft_sign`, where tanh is mostly flat."""
    return soft_sign(arguments[0]) if _flat_tanh(arguments[0]) else None


def saturated_sigmoid(arguments: Arguments, _: Options) -> Tensor | None:
    """That of `soft_step`, where the sigmoid is mostly flat: it is a tanh of half the number, moved."""
    return soft_step(arguments[0]) if _flat_tanh(arguments[0] / 2) else None


def saturated_erf(arguments: Arguments, _: Options) -> Tensor | None:
    """An error function that is as wide as its input, where it is mostly flat."""
    numbers = arguments[0]
    flat = torch.exp(-(numbers.detach() ** 2)) < _FLAT
    return torch.erf(numbers / spread(numbers)) if _mostly(flat) else None


def vanished_exp(arguments: Arguments, _: Options) -> Tensor | None:
    """An exponential that is as wide as its input, where most elements have vanished."""
    return _vanished(arguments[0])


def vanished_exp2(arguments: Arguments, _: Options) -> Tensor | None:
    """The same for powers of two."""
    return _vanished(arguments[0] * math.log(2))


def _vanished(numbers: Tensor) -> Tensor | None:
    flat = torch.exp(numbers.detach()) < _VANISHED
    return torch.exp(numbers / spread(numbers)) if _mostly(flat) else None


def saturated_softmax(arguments: Arguments, options: Options) -> Tensor | None:
    """A softmax of scores by their deviation, where most rows have one element that is certain."""
    scores, dim = arguments[0], arguments[1] if len(arguments) > 1 else options.get("dim")
    if not isinstance(dim, int) or not scores.ndim or scores.shape[dim] < 2:
        return None
    certain = 1 - scores.detach().softmax(dim).amax(dim) < _CERTAIN
    return (scores / deviation(scores, dim)).softmax(dim) if _mostly(certain) else None


def clamped(arguments: Arguments, options: Options) -> Tensor | None:
    """That of a tanh between the ends, where most elements are beyond them, and some are beyond each."""
    numbers = arguments[0]
    low, high = (
        arguments[place] if len(arguments) > place else options.get(name, options.get(f"{name}_val"))
        for place, name in ((1, "min"), (2, "max"))
    )
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
        return None
    below, above = numbers.detach() < low, numbers.detach() > high
    if not _mostly(below | above) or min(_share(below), _share(above)) < _EACH_END:
        return None
    middle, half = (low + high) / 2, (high - low) / 2
    return middle + half * soft_sign(numbers - middle)
