"""Natural gradients of operations that have none, or one that is zero nearly everywhere.

A surrogate is a differentiable stand-in. Only its gradient is used: values are always those of the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.operations.arguments import has_graph, whole
from pytest_gradmask.attacks.bypass.operations.choices import (
    TINY,
    Arguments,
    Carried,
    Options,
    argmax,
    argmin,
    chosen_by,
    drawn_class,
)
from pytest_gradmask.attacks.bypass.operations.saturation import (
    clamped,
    saturated_erf,
    saturated_sigmoid,
    saturated_softmax,
    saturated_tanh,
    soft_sign,
    soft_step,
    spread,
    vanished_exp,
    vanished_exp2,
)

StandIn = Carried | Tensor | None
#: Takes the arguments of a call, with floats in place of integers that have a gradient. None: it has no surrogate.
#: Several for an operation that returns several tensors.
Build = Callable[[Arguments, Options], StandIn | tuple[StandIn, ...]]


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


def _sign(arguments: Arguments, _: Options) -> Tensor:
    return soft_sign(arguments[0])


def _second(arguments: Arguments, options: Options) -> Any:
    return arguments[1] if len(arguments) > 1 else options["other"]


def _above(arguments: Arguments, options: Options) -> Tensor:
    difference: Tensor = arguments[0] - _second(arguments, options)
    return soft_step(difference)


def _below(arguments: Arguments, options: Options) -> Tensor:
    return 1 - _above(arguments, options)


def _equal(arguments: Arguments, options: Options) -> Tensor:
    difference: Tensor = arguments[0] - _second(arguments, options)
    return torch.exp(-((difference / spread(difference)) ** 2))


def _unequal(arguments: Arguments, options: Options) -> Tensor:
    return 1 - _equal(arguments, options)


def _step(arguments: Arguments, _: Options) -> Tensor:
    return soft_step(arguments[0])


def _negative(arguments: Arguments, _: Options) -> Tensor:
    return soft_step(-arguments[0])


def _with_sign(arguments: Arguments, options: Options) -> Tensor | None:
    size, other = arguments[0], _second(arguments, options)
    if not isinstance(other, Tensor) or not has_graph(other):
        return None
    signed: Tensor = size.abs() * _sign([other], {})
    return signed


def _hamming(arguments: Arguments, options: Options) -> Tensor | None:
    power = arguments[2] if len(arguments) > 2 else options.get("p", 2.0)
    return torch.cdist(arguments[0], arguments[1], p=1.0) if power == 0 else None


def _quotient(arguments: Arguments, options: Options) -> Tensor:
    quotient: Tensor = arguments[0] / _second(arguments, options)
    return quotient


def _step_of_quotient(arguments: Arguments, options: Options) -> Tensor | None:
    """Of a quotient that is rounded, and of a number divided by its own size, which is its sign."""
    if options.get("rounding_mode"):
        return _quotient(arguments, options)
    number, size = arguments[0], _second(arguments, options)
    own = isinstance(number, Tensor) and isinstance(size, Tensor) and number.shape == size.shape and has_graph(size)
    if not own or not bool(whole((number.abs() - size).abs() <= 1e-6 + 1e-4 * size.abs()).all()):
        return None
    return _sign(arguments, options)


def _reverse_quotient(arguments: Arguments, options: Options) -> Tensor:
    quotient: Tensor = _second(arguments, options) / arguments[0]
    return quotient


def _remainder(arguments: Arguments, _: Options) -> Tensor | None:
    return 0.5 * arguments[0] if isinstance(arguments[0], Tensor) else None


def _probability(arguments: Arguments, options: Options) -> Tensor | None:
    drawn_with_another = len(arguments) > 1 or "p" in options
    return None if drawn_with_another else _first(arguments, options)


def _bucket(points: Tensor, boundaries: Any) -> Tensor | None:
    if not isinstance(boundaries, Tensor) or boundaries.ndim != 1 or len(boundaries) < 2:
        return None
    gap = boundaries.detach().to(points).diff().abs().mean().clamp_min(TINY)
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


def _same(arguments: Arguments, options: Options) -> Tensor:
    return 1 - _one_of(arguments, options)


def _opposite(arguments: Arguments, _: Options) -> Tensor:
    opposite: Tensor = 1 - arguments[0]
    return opposite


_STE = "Bengio, Léonard and Courville 2013, arXiv:1308.3432"
_BPDA = "Athalye, Carlini and Wagner 2018, arXiv:1802.00420"
_SOFT = "softmax in place of the largest, as in Jang, Gu and Poole 2017, arXiv:1611.01144"
_WIDE = "logits that are not saturated, as in Carlini and Wagner 2017, arXiv:1608.04644"
_SORT = "SoftSort: Prillo and Eisenschlos 2020, arXiv:2006.16038"
_NEAR = "of indices: softmax of minus the distance to what was chosen, by the deviation of the scores"

_identity = Surrogate(_first, "identity (straight-through)", _STE)
_greater = Surrogate(_above, "sigmoid of the difference by its mean size", "soft thresholds, as in " + _BPDA)
_less = Surrogate(_below, "as of greater, with the other sign", "soft thresholds, as in " + _BPDA)

#: Operations by their names in torch, without the underscore of those that write into their argument.
SURROGATES: dict[str, Surrogate] = {
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix", "rint"), _identity),
    **dict.fromkeys(("quantize_per_tensor", "quantize_per_channel", "fake_quantize_per_tensor_affine"), _identity),
    **dict.fromkeys(("sign", "sgn"), Surrogate(_sign, "tanh, by the mean size of the input", _STE)),
    "signbit": Surrogate(_negative, "minus a sigmoid, by the mean size of the input", _STE),
    "copysign": Surrogate(_with_sign, "size times tanh, by the mean size of what gives the sign", _STE),
    "heaviside": Surrogate(_step, "sigmoid, by the mean size of the input", _STE),
    **dict.fromkeys(("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"), _greater),
    **dict.fromkeys(("lt", "le", "less", "less_equal", "__lt__", "__le__"), _less),
    **dict.fromkeys(("eq", "__eq__", "isclose"), Surrogate(_equal, "a bell around equality", _BPDA)),
    **dict.fromkeys(("ne", "not_equal", "__ne__"), Surrogate(_unequal, "one minus a bell", _BPDA)),
    **dict.fromkeys(("floor_divide", "__floordiv__"), Surrogate(_quotient, "quotient", _STE)),
    **dict.fromkeys(
        ("div", "divide"),
        Surrogate(_step_of_quotient, "quotient, where it is rounded; of x by its size, that of sign", _STE),
    ),
    "__rfloordiv__": Surrogate(_reverse_quotient, "quotient", _STE),
    # The remainder is a saw: its gradient is one, and on average zero. With one, ``x - x % step`` would have no
    # gradient, and with zero, a sum of the bits of x would have none. With a half, both have one.
    **dict.fromkeys(
        ("remainder", "fmod", "__mod__", "frac"),
        Surrogate(_remainder, "half of the identity", "between the two limits"),
    ),
    "tanh": Surrogate(saturated_tanh, "where it is saturated: by the mean size of the input", _WIDE),
    **dict.fromkeys(
        ("sigmoid", "expit", "special_expit"),
        Surrogate(saturated_sigmoid, "where it is saturated: by the mean size of the input", _WIDE),
    ),
    **dict.fromkeys(
        ("erf", "special_erf"),
        Surrogate(saturated_erf, "where it is saturated: by the mean size of the input", _WIDE),
    ),
    "exp": Surrogate(vanished_exp, "where it has vanished: by the mean size of the input", _WIDE),
    **dict.fromkeys(
        ("exp2", "special_exp2"),
        Surrogate(vanished_exp2, "where it has vanished: by the mean size of the input", _WIDE),
    ),
    "softmax": Surrogate(saturated_softmax, "where it is saturated: by the deviation of the scores", _WIDE),
    **dict.fromkeys(
        ("clamp", "clip", "hardtanh"),
        Surrogate(clamped, "where it is saturated at both ends: tanh, by the mean distance from the middle", _WIDE),
    ),
    "bernoulli": Surrogate(_probability, "identity of the probability", _STE),
    "poisson": Surrogate(_first, "identity of the rate", _STE),
    "multinomial": Surrogate(drawn_class, "its probabilities", _SOFT),
    "argmax": Surrogate(argmax, "softmax, by the deviation of the scores", _SOFT),
    "argmin": Surrogate(argmin, "softmin, by the deviation of the scores", _SOFT),
    **{
        name: Surrogate(chosen_by(getattr(torch, name), position, default), _NEAR, _SORT)
        for name, position, default in (
            *(("sort", 1, -1), ("argsort", 1, -1), ("topk", 2, -1), ("kthvalue", 2, -1)),
            *(("max", 1, None), ("min", 1, None), ("median", 1, None), ("nanmedian", 1, None)),
        )
    },
    "cdist": Surrogate(_hamming, "with p=0: that of p=1", "Hamming distance of bits"),
    "bucketize": Surrogate(_bucketize, "position by the mean distance of boundaries", _STE),
    "searchsorted": Surrogate(_searchsorted, "position by the mean distance of boundaries", _STE),
}

#: Operations on integers and truth values, which floats do not know. They only pass a gradient on.
ON_INTEGERS: dict[str, Build] = {
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__", "__iand__"), _both),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__", "__ior__"), _either),
    **dict.fromkeys(("logical_xor", "bitwise_xor", "__xor__"), _one_of),
    **dict.fromkeys(("logical_not", "bitwise_not", "__invert__"), _opposite),
    **dict.fromkeys(("eq", "__eq__"), _same),
    **dict.fromkeys(("ne", "not_equal", "__ne__"), _one_of),
    "count_nonzero": lambda arguments, options: torch.sum(arguments[0], *arguments[1:], **options),
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
