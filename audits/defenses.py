"""Constructed masks: front ends that keep a classifier's predictions and take its gradient away."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradients[0])


class GradientKiller(nn.Module):
    """The identity, with a backward pass that returns zeros."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _NoGradient.apply(images)  # type: ignore[no-any-return]


class Quantization(nn.Module):
    """Rounds pixels to ``2 ** bits`` levels (feature squeezing, Xu et al. 2018): zero gradients almost everywhere."""

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        self.levels: int = 2**bits - 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images * self.levels).round() / self.levels


class Detached(nn.Module):
    """A mild smoothing computed without a graph, as a preprocessing step in NumPy would be."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            smooth = nn.functional.avg_pool2d(nn.functional.pad(images, [1] * 4, mode="replicate"), 3, 1)
            return torch.lerp(images, smooth, 0.1)


MASKS = {"gradient-killer": GradientKiller, "quantization": Quantization, "detached": Detached}
