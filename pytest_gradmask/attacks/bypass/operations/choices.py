"""Natural gradients of choices: which element is the largest, which come first, which was drawn.

A choice is an integer. Its stand-in is the probability of each element, so that what is looked up with it is a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Smallest scale by which a stand-in divides.
TINY = 1e-12
#: Probabilities that one row of scores may have: elements chosen, times elements to choose from.
_LARGEST_ROW = 1 << 20


@dataclass(frozen=True, slots=True)
class Carried:
    """A differentiable stand-in for a tensor.

    Attributes:
        values: float, of the tensor's shape.
        weights: for class indices, the probability of each class: the tensor's shape x K. None for other numbers.
    """

    values: Tensor
    weights: Tensor | None = None


Arguments = Sequence[Any]
Options = Mapping[str, Any]


def expected(weights: Tensor) -> Carried:
    """The expected class, with the probability of each: ... x K."""
    return Carried((weights * torch.arange(weights.shape[-1]).to(weights)).sum(-1), weights)


def argmax(arguments: Arguments, options: Options, sign: float = 1.0) -> Carried:
    """The probabilities of a softmax."""
    scores = sign * arguments[0]
    dim = arguments[1] if len(arguments) > 1 else options.get("dim")
    keepdim = arguments[2] if len(arguments) > 2 else options.get("keepdim", False)
    if dim is None:
        scores, dim, keepdim = scores.flatten(), 0, False
    weights = (scores / deviation(scores, dim)).softmax(dim).movedim(dim, -1)
    if keepdim:
        weights = weights.unsqueeze(dim if dim >= 0 else dim - 1)
    return expected(weights)


def argmin(arguments: Arguments, options: Options) -> Carried:
    """The probabilities of a softmin."""
    return argmax(arguments, options, -1.0)


def drawn_class(arguments: Arguments, options: Options) -> Carried:
    """The probabilities that ``multinomial`` draws with."""
    drawn = arguments[1] if len(arguments) > 1 else options["num_samples"]
    weights = arguments[0] / arguments[0].sum(-1, keepdim=True).clamp_min(TINY)
    return expected(weights.unsqueeze(-2).expand(*weights.shape[:-1], drawn, weights.shape[-1]))


def chosen_by(function: Callable[..., Any], position: int, default: int | None) -> Callable[[Arguments, Options], Any]:
    """The stand-in of an operation that returns elements of its input together with their indices, or indices alone.

    Args:
        function: the operation.
        position: of the dimension among its arguments.
        default: the dimension where none is given; None: without one, the operation returns no indices.
    """

    def build(arguments: Arguments, options: Options) -> Any:
        scores = arguments[0]
        given = arguments[position] if len(arguments) > position else options.get("dim", default)
        # ``max`` of two tensors, and ``max`` of all elements, choose no index. ``sort`` may get ``stable`` first.
        dim = default if isinstance(given, bool) else given
        if not isinstance(scores, Tensor) or not scores.ndim or not isinstance(dim, int):
            return None
        found = function(*arguments, **{name: value for name, value in options.items() if name != "out"})
        values, indices = (None, found) if isinstance(found, Tensor) else found
        choice = _places(scores, indices, dim)
        return None if choice is None else choice if values is None else (values, choice)

    return build


def _places(scores: Tensor, indices: Tensor, dim: int) -> Carried | None:
    """How near in size each element is to the one that was chosen (SoftSort). For the largest, it is the softmax."""
    dropped = indices.ndim < scores.ndim
    if dropped:
        indices = indices.unsqueeze(dim)
    if indices.shape[dim] * scores.shape[dim] > _LARGEST_ROW:
        return None
    chosen = scores.gather(dim, indices).movedim(dim, -1)
    scaled = deviation(scores, dim).movedim(dim, -1).unsqueeze(-1)
    distances = (chosen.unsqueeze(-1) - scores.movedim(dim, -1).unsqueeze(-2)).abs() / scaled
    weights = (-distances).softmax(-1)
    return expected(weights.squeeze(-2) if dropped else weights.movedim(-2, dim if dim >= 0 else dim - 1))


def deviation(scores: Tensor, dim: int) -> Tensor:
    """By which scores are divided, because the softmax of large ones is as flat as the largest element itself."""
    return scores.detach().std(dim, keepdim=True).nan_to_num(1.0).clamp_min(TINY)


def put_in_order(weights: Tensor, source: Tensor | float, dim: int) -> Tensor:
    """What is written to each element, where the source is written to chosen ones along a dimension.

    Args:
        weights: the probabilities of the choices: the shape of the indices x K.
        source: a number, or one for each choice.
        dim: of the choices.

    Returns:
        K along ``dim``. Where as many are chosen as there are, as by ``argsort``, each element gets one number in all.
    """
    weights = weights.movedim(dim if dim >= 0 else dim - 1, -2)
    written = weights * (source.movedim(dim, -1).unsqueeze(-1) if isinstance(source, Tensor) else source)
    found = written.sum(-2)
    if weights.shape[-2] == weights.shape[-1]:
        found = found / weights.sum(-2).clamp_min(TINY)
    return found.movedim(-1, dim)
