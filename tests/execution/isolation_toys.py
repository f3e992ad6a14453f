"""Two ways to leave the context of an audit, and a model whose state shows what was restored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pytest_gradmask.execution.isolation import no_trace
from tests.toys import CPU

Inside = Callable[[nn.Module], AbstractContextManager[None]]


@contextlib.contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Leave the context normally."""
    with no_trace([model], CPU):
        yield


@contextlib.contextmanager
def raising(model: nn.Module) -> Iterator[None]:
    """Leave the context by an exception."""
    with contextlib.suppress(ZeroDivisionError), no_trace([model], CPU):
        yield
        _ = 1 / 0


class Stateful(nn.Module):
    """Has a frozen parameter, another with a gradient, buffers, and a submodule in train mode."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.eval()
        self.dropout.train()
        self.layer.bias.requires_grad_(False)
        self.layer.weight.grad = torch.ones(4, 4)
