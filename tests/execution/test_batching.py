"""Batches are halved until memory suffices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Verdict
from pytest_gradmask.execution.batching import in_batches, on_fewer
from tests.toys import IMAGES, audited, linear, predictions

ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


def test_batches_are_consecutive_and_of_the_asked_size() -> None:
    assert in_batches(lambda start, end: (start, end), 10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert in_batches(lambda start, end: (start, end), 0, 4) == []


@every_error
@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_halved(error: Callable[[], Exception], room: int) -> None:
    done: list[int] = []

    def work(start: int, end: int) -> None:
        if end - start > room:
            raise error()
        done.extend(range(start, end))

    in_batches(work, 10, 8)
    assert done == list(range(10))


@every_error
def test_single_item_that_does_not_fit_is_an_error(error: Callable[[], Exception]) -> None:
    def work(*_: int) -> None:
        raise error()

    with pytest.raises(type(error())):
        in_batches(work, 3, 2)


def test_other_errors_are_raised_at_once() -> None:
    calls: list[int] = []

    def work(start: int, end: int) -> None:
        calls.append(end - start)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_batches(work, 8, 8)
    assert calls == [8]


class Cramped(nn.Module):
    """Runs out of memory on more images than ``room``, or than 4 times as many without gradients."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.model, self.room = linear(), room

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > (self.room if images.requires_grad else 4 * self.room):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images)  # type: ignore[no-any-return]


def test_an_audit_goes_on_in_smaller_batches() -> None:
    labels = predictions(linear(), IMAGES)
    cramped, roomy = (audited(Cramped(room).eval(), labels=labels, exhaustive=True) for room in (12, 1000))
    assert cramped.verdict is roomy.verdict is Verdict.NOT_MASKED
    assert {attack.status for attack in cramped.attacks} <= {"done", "skipped"}
    assert cramped.attack("apgd-ce").attacked == roomy.attack("apgd-ce").attacked


@every_error
def test_what_needs_a_few_items_takes_fewer(error: Callable[[], Exception]) -> None:
    asked: list[int] = []

    def work(count: int) -> int:
        asked.append(count)
        if count > 2:
            raise error()
        return count

    assert on_fewer(work, 9) == 2
    assert asked == [9, 4, 2]
    with pytest.raises(type(error())):
        on_fewer(lambda count: work(count + 2), 9)
    with pytest.raises(ValueError, match="another"):
        on_fewer(lambda _: int("another"), 9)
