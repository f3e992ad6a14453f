"""A copy of a defense that computes in float64, also where its code asks for a smaller float."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pytest_gradmask.execution.compiled import eagerly

_SMALL = (torch.float16, torch.bfloat16, torch.float32)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
_LIKE = (Tensor.to, Tensor.type_as)
#: Splits the 53 bits of a float64 into the 24 of a float32 and the rest (Dekker 1971).
_SPLIT = 2.0**29 + 1


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype in _SMALL else value


def _dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SMALL else value


class _InDouble(TorchFunctionMode):
    """Every float that Python code asks of torch is a float64.

    Tensors that are no parameter and no buffer stay as they are; an operation that refuses them gets them in float64.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in _CASTS:
            return args[0].double()
        args = [_dtype(value) for value in args]
        kwargs = {name: _dtype(value) for name, value in (kwargs or {}).items()}
        if function in _LIKE:
            args = [args[0], *map(_double, args[1:])]
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if "dtype" not in str(error) and "type" not in str(error):
                raise
            return function(*tree_map(_double, args), **tree_map(_double, kwargs))


def double_copy(model: nn.Module) -> nn.Module:
    """A deep copy with parameters and buffers in float64, none of which require a gradient.

    Raises:
        Exception: whatever the model raises when it is copied or converted.
    """
    return copy.deepcopy(model).requires_grad_(False).double()


@contextmanager
def computing_in_double() -> Iterator[None]:
    """Inside, Python code computes in float64; compiled code is left out in favour of its source."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with eagerly(), _InDouble():
            yield
    finally:
        torch.set_default_dtype(default)


class RoundingToSingle(TorchFunctionMode):
    """Inside, each operation on float64 is rounded as one on float32 would be. Its derivative stays as it is."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or result.dtype != torch.float64 or any(result is each for each in args):
            return result
        # Dekker's splitting: arithmetic alone, because casts are not what they seem in a copy that computes in float64.
        with torch.no_grad():
            scaled = result * _SPLIT
            lost = result - (scaled - (scaled - result))
        return result - lost.nan_to_num(0, 0, 0)
