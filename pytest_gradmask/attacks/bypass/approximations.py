"""Differentiable substitutes, fitted to what a part of a defense does to a few images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pytest_gradmask.execution.generators import seeded_weights

Map = Callable[[torch.Tensor], torch.Tensor]

_WIDTH = 32
_STEPS = 200
#: Share of the variance that a fitted network must explain to be of any use.
_EXPLAINED = 0.5


def fit_affine(given: torch.Tensor, made: torch.Tensor) -> tuple[Map, float]:
    """The scale and offset for each channel that make ``made`` of ``given`` best.

    Args:
        given, made: N x C x H x W.

    Returns:
        The map, and the norm of what it leaves unexplained, as a share of the norm of ``made``, each about its mean.
    """
    source, target = (tensor.double().transpose(0, 1).flatten(1) for tensor in (given, made))
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    centred, wanted = source - source_mean, target - target_mean
    slope = (centred * wanted).sum(1) / centred.square().sum(1).clamp_min(1e-12)
    error = float((wanted - slope[:, None] * centred).norm() / wanted.norm().clamp_min(1e-12))
    offset = target_mean[:, 0] - slope * source_mean[:, 0]
    scale, shift = (values.to(given).view(1, -1, 1, 1) for values in (slope, offset))
    return lambda images: images * scale + shift, error


def fit_convolution(given: torch.Tensor, made: torch.Tensor, seed: int) -> Map | None:
    """A small convolutional network that makes ``made`` of ``given``.

    Args:
        given: N x C x H x W.
        made: N x K x H x W.
        seed: of its weights.

    Returns:
        The network, or None if height and width differ, or if it explains less than half of the variance of ``made``.
    """
    if given.ndim != 4 or made.ndim != 4 or given.shape[2:] != made.shape[2:] or len(given) != len(made):
        return None
    source, target = given.detach().float(), made.detach().float()
    spread = target.std()
    if not (spread.isfinite() and spread > 0):
        return None
    with seeded_weights(seed), torch.enable_grad():
        network = nn.Sequential(
            nn.Conv2d(source.shape[1], _WIDTH, 3, padding=1),
            nn.SiLU(),  # smooth: its gradient is what it is for
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
    network.eval().requires_grad_(False).to(given.dtype)
    explained = 1 - (network(given).float() - target).square().mean() / target.var()
    return network if bool(explained >= _EXPLAINED) else None
