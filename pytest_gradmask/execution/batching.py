"""Batches no larger than memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_batches(work: Callable[[int, int], Result], count: int, size: int) -> list[Result]:
    """Work on consecutive batches, halving their size whenever memory does not suffice.

    Args:
        work: from the first index of a batch and the one after its last to a result. It may be called again for the
            first part of a batch for which it has run out of memory.
        count: how many there are.
        size: of a batch at first, at least 1.

    Returns:
        One result a batch, in order.

    Raises:
        Exception: what ``work`` raises, running out of memory on a batch of one included.
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
        # After the handler, whose exception held on to what filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    # Of the CPU's allocator torch tells by a RuntimeError like any other.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
