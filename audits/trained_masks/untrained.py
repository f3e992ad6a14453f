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
from audits.trained_masks.roughness import roughness

_ROUNDS = 6
#: Next check 3: architecture, depth and width.
OTHERS = (("dncnn", 17, 16), ("dncnn", 49, 16), ("unet", 15, 16), ("unet", 50, 16), ("invertible", 48, 16))


def random_front_end(
    images: torch.Tensor,
    residual_sd: float,
    *,
    depth: int,
    width: int = 64,
    architecture: str = "dncnn",
    normalized: bool,
    seed: int,
) -> nn.Module:
    """A front end with random weights, running statistics of ``images``, and a residual of this deviation on them.

    Args:
        images: N x 3 x H x W, a few hundred.
        residual_sd: in input units.
        depth, width, architecture, normalized: of `IdentityStart`.
        seed: of its weights; the global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        front_end = IdentityStart(depth, width, architecture=architecture, normalized=normalized)
        for readout in front_end.readouts:
            nn.init.orthogonal_(readout.weight)
        for norm in front_end.norms():
            norm.momentum = 1.0  # the statistics are those of these images
        # Once is exact for a single readout; several of them change what the later ones see.
        for _ in range(1 if len(front_end.readouts) == 1 else _ROUNDS):
            front_end.train()(images)
            front_end.eval()
            scale = residual_sd / (images - front_end(images)).std()
            for readout in front_end.readouts:
                readout.weight.mul_(scale)
        front_end.train()(images)
    return front_end.eval().to(memory_format=torch.channels_last).requires_grad_(False)


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


def other_untrained(
    backbone: nn.Module, calibration: Dataset, test: Dataset, residual_sd: float
) -> list[dict[str, Any]]:
    """Each of `OTHERS` before a backbone, with no training at all; see `figures` and `roughness`."""
    rows = []
    for architecture, depth, width in OTHERS:
        front_end = random_front_end(
            calibration.images, residual_sd,
            depth=depth, width=width, architecture=architecture, normalized=True, seed=0,
        )  # fmt: skip
        rows.append(
            {
                "architecture": architecture,
                "depth": depth,
                "width": width,
                "images": len(test),
                "roughness": roughness(front_end, test.images[:16])["roughness"],
                **figures(front_end, backbone, test, steps=10, seed=0),
            }
        )
    return rows
