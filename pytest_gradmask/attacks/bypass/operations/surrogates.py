"""Natural gradients of operations that have none, or one that is zero nearly everywhere.

A surrogate is a differentiable stand-in. Only its gradient is used: values are always those of the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Smallest scale by which a surrogate divides.
_TINY = 1e-12


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
#: Takes the arguments of a call, with floats in place of integers that have a gradient. None: it has no surrogate.
Build = Callable[[Arguments, Options], Carried | Tensor | None]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The natural gradient of an operation.

    Attributes:
        build: makes the stand-in.
        gradient: in words.
        source: where it was proposed.
    """

    build: Build
    gradient: str
    source: str


def _first(arguments: Arguments, _: Options) -> Tensor | None:
    return arguments[0] if isinstance(arguments[0], Tensor) else None


def _spread(difference: Tensor) -> Tensor:
    """Mean size of a difference: the width of a soft step."""
    return difference.detach().abs().mean().clamp_min(_TINY)


def _sign(arguments: Arguments, _: Options) -> Tensor:
    return torch.tanh(arguments[0] / _spread(arguments[0]))


def _second(arguments: Arguments, options: Options) -> Any:
    return arguments[1] if len(arguments) > 1 else options["other"]


def _above(arguments: Arguments, options: Options) -> Tensor:
    difference: Tensor = arguments[0] - _second(arguments, options)
    return torch.sigmoid(difference / _spread(difference))


def _below(arguments: Arguments, options: Options) -> Tensor:
    return 1 - _above(arguments, options)


def _equal(arguments: Arguments, options: Options) -> Tensor:
    difference: Tensor = arguments[0] - _second(arguments, options)
    return torch.exp(-((difference / _spread(difference)) ** 2))


def _unequal(arguments: Arguments, options: Options) -> Tensor:
    return 1 - _equal(arguments, options)


def _step(arguments: Arguments, _: Options) -> Tensor:
    return torch.sigmoid(arguments[0] / _spread(arguments[0]))


def _quotient(arguments: Arguments, options: Options) -> Tensor:
    quotient: Tensor = arguments[0] / _second(arguments, options)
    return quotient


def _rounded_quotient(arguments: Arguments, options: Options) -> Tensor | None:
    return _quotient(arguments, options) if options.get("rounding_mode") else None


def _reverse_quotient(arguments: Arguments, options: Options) -> Tensor:
    quotient: Tensor = _second(arguments, options) / arguments[0]
    return quotient


def _remainder(arguments: Arguments, _: Options) -> Tensor | None:
    return 0.5 * arguments[0] if isinstance(arguments[0], Tensor) else None


def _probability(arguments: Arguments, options: Options) -> Tensor | None:
    drawn_with_another = len(arguments) > 1 or "p" in options
    return None if drawn_with_another else _first(arguments, options)


def _argmax(arguments: Arguments, options: Options, sign: float = 1.0) -> Carried:
    scores = sign * arguments[0]
    dim = arguments[1] if len(arguments) > 1 else options.get("dim")
    keepdim = arguments[2] if len(arguments) > 2 else options.get("keepdim", False)
    if dim is None:
        scores, dim, keepdim = scores.flatten(), 0, False
    # Divided by their deviation, because the softmax of large logits is as flat as the largest class itself.
    scores = scores / scores.detach().std(dim, keepdim=True).nan_to_num(1.0).clamp_min(_TINY)
    weights = scores.softmax(dim).movedim(dim, -1)
    if keepdim:
        weights = weights.unsqueeze(dim if dim >= 0 else dim - 1)
    return expected(weights)


def _argmin(arguments: Arguments, options: Options) -> Carried:
    return _argmax(arguments, options, -1.0)


def _drawn_class(arguments: Arguments, options: Options) -> Carried:
    drawn = arguments[1] if len(arguments) > 1 else options["num_samples"]
    weights = arguments[0] / arguments[0].sum(-1, keepdim=True).clamp_min(_TINY)
    return expected(weights.unsqueeze(-2).expand(*weights.shape[:-1], drawn, weights.shape[-1]))


def expected(weights: Tensor) -> Carried:
    """The expected class, with the probability of each: ... x K."""
    return Carried((weights * torch.arange(weights.shape[-1]).to(weights)).sum(-1), weights)


def _bucket(points: Tensor, boundaries: Any) -> Tensor | None:
    if not isinstance(boundaries, Tensor) or boundaries.ndim != 1 or len(boundaries) < 2:
        return None
    gap = boundaries.detach().to(points).diff().abs().mean().clamp_min(_TINY)
    return (points - boundaries[0]) / gap


def _bucketize(arguments: Arguments, options: Options) -> Tensor | None:
    return _bucket(arguments[0], arguments[1] if len(arguments) > 1 else options["boundaries"])


def _searchsorted(arguments: Arguments, _: Options) -> Tensor | None:
    return _bucket(arguments[1], arguments[0]) if len(arguments) > 1 and isinstance(arguments[1], Tensor) else None


def _both(arguments: Arguments, options: Options) -> Tensor:
    both: Tensor = arguments[0] * _second(arguments, options)
    return both


def _either(arguments: Arguments, options: Options) -> Tensor:
    first, second = arguments[0], _second(arguments, options)
    either: Tensor = first + second - first * second
    return either


def _one_of(arguments: Arguments, options: Options) -> Tensor:
    first, second = arguments[0], _second(arguments, options)
    one: Tensor = first + second - 2 * first * second
    return one


def _opposite(arguments: Arguments, _: Options) -> Tensor:
    opposite: Tensor = 1 - arguments[0]
    return opposite


_STE = "Bengio, Léonard and Courville 2013, arXiv:1308.3432"
_BPDA = "Athalye, Carlini and Wagner 2018, arXiv:1802.00420"
_SOFT = "softmax in place of the largest, as in Jang, Gu and Poole 2017, arXiv:1611.01144"

_identity = Surrogate(_first, "identity (straight-through)", _STE)
_greater = Surrogate(_above, "sigmoid of the difference by its mean size", "soft thresholds, as in " + _BPDA)
_less = Surrogate(_below, "as of greater, with the other sign", "soft thresholds, as in " + _BPDA)

#: Operations by their names in torch, without the underscore of those that write into their argument.
SURROGATES: dict[str, Surrogate] = {
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix", "rint"), _identity),
    **dict.fromkeys(("quantize_per_tensor", "quantize_per_channel", "fake_quantize_per_tensor_affine"), _identity),
    **dict.fromkeys(("sign", "sgn"), Surrogate(_sign, "tanh, by the mean size of the input", _STE)),
    "heaviside": Surrogate(_step, "sigmoid, by the mean size of the input", _STE),
    **dict.fromkeys(("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"), _greater),
    **dict.fromkeys(("lt", "le", "less", "less_equal", "__lt__", "__le__"), _less),
    **dict.fromkeys(("eq", "__eq__"), Surrogate(_equal, "a bell around equality", _BPDA)),
    **dict.fromkeys(("ne", "not_equal", "__ne__"), Surrogate(_unequal, "one minus a bell", _BPDA)),
    **dict.fromkeys(("floor_divide", "__floordiv__"), Surrogate(_quotient, "quotient", _STE)),
    **dict.fromkeys(("div", "divide"), Surrogate(_rounded_quotient, "quotient, where it is rounded", _STE)),
    "__rfloordiv__": Surrogate(_reverse_quotient, "quotient", _STE),
    # The remainder is a saw: its gradient is one, and on average zero. With one, ``x - x % step`` would have no
    # gradient, and with zero, a sum of the bits of x would have none. With a half, both have one.
    **dict.fromkeys(
        ("remainder", "fmod", "__mod__"), Surrogate(_remainder, "half of the identity", "between the two limits")
    ),
    "bernoulli": Surrogate(_probability, "identity of the probability", _STE),
    "poisson": Surrogate(_first, "identity of the rate", _STE),
    "multinomial": Surrogate(_drawn_class, "its probabilities", _SOFT),
    "argmax": Surrogate(_argmax, "softmax, by the deviation of the scores", _SOFT),
    "argmin": Surrogate(_argmin, "softmin, by the deviation of the scores", _SOFT),
    "bucketize": Surrogate(_bucketize, "position by the mean distance of boundaries", _STE),
    "searchsorted": Surrogate(_searchsorted, "position by the mean distance of boundaries", _STE),
}

#: Operations on integers and truth values, which floats do not know. They only pass a gradient on.
ON_INTEGERS: dict[str, Build] = {
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__", "__iand__"), _both),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__", "__ior__"), _either),
    **dict.fromkeys(("logical_xor", "bitwise_xor", "__xor__"), _one_of),
    **dict.fromkeys(("logical_not", "bitwise_not", "__invert__"), _opposite),
    "any": lambda arguments, options: torch.amax(arguments[0], *arguments[1:], **options),
    "all": lambda arguments, options: torch.amin(arguments[0], *arguments[1:], **options),
}


def _shifted(arguments: Arguments, options: Options, sign: int) -> Tensor:
    shifted: Tensor = arguments[0] * 2.0 ** (sign * _second(arguments, options))
    return shifted


#: The same for numbers, whose bits are not truth values.
ON_NUMBERS: dict[str, Build] = {
    **dict.fromkeys(
        ("bitwise_and", "__and__", "__iand__", "bitwise_or", "__or__", "__ior__", "bitwise_xor", "__xor__"),
        _first,
    ),
    **dict.fromkeys(
        ("bitwise_right_shift", "__rshift__", "__irshift__"),
        lambda arguments, options: _shifted(arguments, options, -1),
    ),
    **dict.fromkeys(
        ("bitwise_left_shift", "__lshift__", "__ilshift__"), lambda arguments, options: _shifted(arguments, options, 1)
    ),
}
