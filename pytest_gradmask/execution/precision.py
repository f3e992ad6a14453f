"""The precision in which a defense computes under attack. Scores are always taken in its own.

Torch is imported where it is needed: the plugin reads these names at every pytest start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, get_args

from pytest_gradmask.checks import is_a, shown
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.context import holding

if TYPE_CHECKING:
    import torch

#: The defense's own; matrix products of NVIDIA's TensorFloat-32; or autocast to bfloat16. ``auto`` is the own, but
#: bfloat16 for queries that only guide a search, where that is faster and nearly the same.
Precision = Literal["auto", "own", "tf32", "bfloat16"]

#: In which queries that only guide a search are answered, and whether this is such a query.
_SEARCH: ContextVar[Precision] = ContextVar("search", default="own")
_GUIDING: ContextVar[bool] = ContextVar("guiding", default=False)


def check_precision(precision: object) -> None:
    """Raise `InputError` unless there is such a precision."""
    if not is_a(precision, str) or precision not in get_args(Precision):
        raise InputError(f"precision={shown(precision)}: must be one of {', '.join(get_args(Precision))}")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Inside, forward passes compute in bfloat16 where autocast allows it, if that is the precision."""
    if precision != "bfloat16":
        return nullcontext()
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16)


def searching_in(precision: Precision) -> AbstractContextManager[None]:
    """Inside, queries made in `guiding` are answered in that precision."""
    return holding(_SEARCH, precision)


@contextmanager
def guiding() -> Iterator[bool]:
    """Inside, queries only guide a search: no image counts as broken by an answer. Yields whether answers are rough."""
    with holding(_GUIDING, True):
        yield guiding_precision() is not None


def guiding_precision() -> Precision | None:
    """The precision for a query made now, if it only guides a search and may be answered roughly."""
    return _SEARCH.get() if _GUIDING.get() and _SEARCH.get() != "own" else None


@contextmanager
def tensor_float(precision: Precision) -> Iterator[None]:
    """Inside, a GPU uses TensorFloat-32 for forward and backward passes, if that is the precision."""
    if precision != "tf32":
        yield
        return
    import torch

    # Through torch.backends, not set_float32_matmul_precision: that would also change how a CPU computes.
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
