"""Defenses that take gradients themselves, whenever they classify an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.verdict.results import Finding

_IMAGES = 2


class _Watch(TorchFunctionMode):
    """Notes calls of autograd, however they were imported, and what switches gradients on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward):
            self.seen["calls autograd"] = None
        elif getattr(function, "__name__", "") == "_set_grad_enabled" and args and args[0]:
            self.seen["switches gradients on"] = None
        return function(*args, **(kwargs or {}))


def optimizes_at_inference(oracle: Oracle, images: torch.Tensor) -> list[Finding]:
    """Whether a forward pass without gradients takes some of its own (Croce et al. 2022).

    Costs one forward of two images.
    """
    with torch.no_grad(), _Watch() as watch:
        oracle(images[:_IMAGES])
    if not watch.seen:
        return []
    return [
        Finding(
            "optimizes-at-inference",
            f"a forward pass {' and '.join(watch.seen)}: gradients through an optimisation are costly, and often cut",
        )
    ]
