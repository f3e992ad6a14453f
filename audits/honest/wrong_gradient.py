"""A fault in the middle of a network: the backward pass adds a fixed vector, and the forward pass is untouched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.auditing.research import logit_margin


class _Added(torch.autograd.Function):
    """The identity. Its backward pass adds a fixed random vector of a size relative to the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, size: float) -> Tensor:
        ctx.size = size
        return features.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        vector = torch.randn(gradient.shape[1:], generator=torch.Generator().manual_seed(7))
        norms = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
        return gradient + ctx.size * norms * (vector / vector.norm()), None


@contextmanager
def wrong_gradient(module: nn.Module, size: float) -> Iterator[None]:
    """In this context, the backward pass adds a vector of this relative size at the output of a module."""
    hook = module.register_forward_hook(lambda _, inputs, output: _Added.apply(output, size))
    try:
        yield
    finally:
        hook.remove()


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the logit margin with respect to the images."""
    points = images.clone().requires_grad_(True)
    return torch.autograd.grad(logit_margin(model(points), labels).sum(), points)[0]


def size_for_cosine(model: nn.Module, module: nn.Module, images: Tensor, labels: Tensor, cosine: float) -> float:
    """The size of the wrong vector at which the median cosine to the true gradient has this value, by bisection."""
    true = gradient(model, images, labels).flatten(1)
    low, high = 0.01, 1000.0
    for _ in range(14):
        size = math.sqrt(low * high)
        with wrong_gradient(module, size):
            wrong = gradient(model, images, labels).flatten(1)
        if float(torch.cosine_similarity(true, wrong).median()) > cosine:
            low = size
        else:
            high = size
    return size
