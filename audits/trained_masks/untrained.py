"""A control: the same front end with no training, its last convolution random and as large as one likes.

A random stack of batch norm and ReLU multiplies a gradient's norm by about 1.2 a layer (Yang et al. 2019,
arXiv:1902.08129). How large must the residual, or rather the gain of its Jacobian, be to mask?
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from audits.trained_masks.diagnostics import figures
from audits.trained_masks.front_end import IdentityStart
from audits.trained_masks.package import Dataset


def random_front_end(images: torch.Tensor, residual_sd: float, *, depth: int, normalized: bool, seed: int) -> nn.Module:
    """A front end with random weights, running statistics of ``images``, and a residual of this deviation on them.

    Args:
        images: N x 3 x H x W, a few hundred.
        residual_sd: in input units.
        depth, normalized: of `IdentityStart`.
        seed: of its weights; the global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        front_end = IdentityStart(depth, normalized=normalized)
        last = front_end.residual[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.orthogonal_(last.weight)
        for norm in front_end.norms():
            norm.momentum = 1.0  # the statistics are those of these images
        front_end.train()(images)
        front_end.eval()
        last.weight.mul_(residual_sd / (images - front_end(images)).std())
    return front_end.to(memory_format=torch.channels_last).requires_grad_(False)


def untrained(
    backbone: nn.Module, calibration: Dataset, test: Dataset, residual_sd: float, *, depth: int, normalized: bool
) -> dict[str, Any]:
    """What such a front end does before a backbone; see `diagnostics.figures`."""
    front_end = random_front_end(calibration.images, residual_sd, depth=depth, normalized=normalized, seed=0)
    return {
        "depth": depth,
        "normalized": normalized,
        "wanted_residual_sd": residual_sd,
        "images": len(test),
        **figures(front_end, backbone, test, steps=10, seed=0),
    }
