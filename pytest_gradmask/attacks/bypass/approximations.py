"""Differentiable approximations of a part of a defense, fitted to its inputs and outputs on a few images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pytest_gradmask.execution.generators import seeded_weights

Approximation = Callable[[Tensor], Tensor]

_WIDTH = 32
_STEPS = 200
#: Share of the variance that a fitted network must explain, or else it is not used.
_EXPLAINED = 0.5


def fit_affine(inputs: Tensor, outputs: Tensor) -> tuple[Approximation, float]:
    """Fit a scale and an offset for each channel, by least squares.

    Args:
        inputs, outputs: N x C x ..., such as N x C x H x W.

    Returns:
        The affine map, and its error: the norm of the residual as a share of the norm of ``outputs`` about its mean.
    """
    source, target = (tensor.double().transpose(0, 1).flatten(1) for tensor in (inputs, outputs))
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    source_centred, target_centred = source - source_mean, target - target_mean
    slope = (source_centred * target_centred).sum(1) / source_centred.square().sum(1).clamp_min(1e-12)
    residual = target_centred - slope[:, None] * source_centred
    error = float(residual.norm() / target_centred.norm().clamp_min(1e-12))
    offset = target_mean[:, 0] - slope * source_mean[:, 0]
    scale, shift = (values.to(inputs).view(1, -1, *[1] * (inputs.ndim - 2)) for values in (slope, offset))
    return lambda images: images * scale + shift, error


def fit_convolution(inputs: Tensor, outputs: Tensor, seed: int) -> Approximation | None:
    """Fit a small convolutional network.

    Args:
        inputs: N x C x H x W.
        outputs: N x K x H x W.
        seed: of the network's weights.

    Returns:
        The network. None if height and width differ, or if it explains less than half of the variance of ``outputs``.
    """
    if inputs.ndim != 4 or outputs.ndim != 4 or inputs.shape[2:] != outputs.shape[2:] or len(inputs) != len(outputs):
        return None
    source, target = inputs.detach().float(), outputs.detach().float()
    deviation = target.std()
    if not (deviation.isfinite() and deviation > 0):
        return None
    with seeded_weights(seed), torch.enable_grad():
        network = nn.Sequential(
            nn.Conv2d(source.shape[1], _WIDTH, 3, padding=1),
            nn.SiLU(),  # smooth, because only the gradient of the network is used
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, target.shape[1], 3, padding=1),
        ).to(source.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(_STEPS):
            loss = (network(source) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval().requires_grad_(False).to(inputs.dtype)
    explained = 1 - (network(inputs).float() - target).square().mean() / target.var()
    return network if bool(explained >= _EXPLAINED) else None


def dequantized(module: nn.Module) -> Approximation | None:
    """The linear map of a dynamically quantized layer, with the same weights, in floating point; None for others."""
    if not isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
        return None
    weight, bias = module.weight().dequantize(), module.bias()
    return lambda inputs: nn.functional.linear(inputs, weight.to(inputs), None if bias is None else bias.to(inputs))
