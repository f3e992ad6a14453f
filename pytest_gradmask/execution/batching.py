"""Work in batches that are halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_batches(work: Callable[[int, int], Result], count: int, size: int) -> list[Result]:
    """Call ``work`` on consecutive batches. Halve the batch size each time that memory runs out.

    Args:
        work: takes the first index of a batch and the index after its last; returns a result. If it runs out of memory,
            it is called again on the first half of the batch.
        count: total number of items.
        size: batch size to start with, at least 1.

    Returns:
        One result per batch, in order.

    Raises:
        Exception: any error that ``work`` raises, including running out of memory on a batch of one.
    """
    results: list[Result] = []
    start = 0
    while start < count:
        end = min(start + size, count)
        try:
            results.append(work(start, end))
        except (RuntimeError, MemoryError) as error:
            if end - start == 1 or not out_of_memory(error):
                raise
            size = (end - start) // 2
        else:
            start = end
            continue
        # Only after the handler: the exception keeps the tensors alive that filled the memory.
        _free()
    return results


def on_fewer(work: Callable[[int], Result], count: int) -> Result:
    """Call ``work`` with ``count``, and with half as much each time that memory runs out.

    For what a few items are enough for.

    Raises:
        Exception: any error that ``work`` raises, including running out of memory on one item.
    """
    while True:
        try:
            return work(count)
        except (RuntimeError, MemoryError) as error:
            if count <= 1 or not out_of_memory(error):
                raise
        _free()
        count //= 2


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out."""
    # When memory of the CPU runs out, torch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
