"""Probe for defenses that compute gradients themselves when they classify an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.verdict.results import Finding

_IMAGES = 2


class _RecordAutograd(TorchFunctionMode):
    """Records calls of autograd, no matter how they were imported, and code that switches gradients on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, None] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.calls["calls autograd"] = None
        elif getattr(function, "__name__", "") == "_set_grad_enabled" and args and args[0]:
            self.calls["switches gradients on"] = None
        return function(*args, **(kwargs or {}))


def optimizes_at_inference(oracle: Oracle, images: Tensor) -> list[Finding]:
    """Whether a forward pass computes gradients although they are switched off (Croce et al. 2022, arXiv:2202.13711).

    Costs one forward pass of two images.
    """
    with torch.no_grad(), _RecordAutograd() as record:
        oracle(images[:_IMAGES])
    if not record.calls:
        return []
    return [
        Finding(
            "optimizes-at-inference",
            f"a forward pass {' and '.join(record.calls)}: gradients through an optimisation are costly, and often cut",
        )
    ]
