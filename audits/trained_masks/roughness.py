"""How rough is a residual: over what distance do its values and its gradients change?

Of a residual of standard deviation s on pixels of standard deviation p, whose Jacobian multiplies the norm of a random
direction by g, the roughness is g p / s: 1 for a residual proportional to the image, about 1.2 times more for each
layer of batch norm and ReLU with random weights (Yang et al. 2019, arXiv:1902.08129). It says nothing of the size of
the residual. A gradient is a guide over about p / roughness: compare that with an attack's steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audits.trained_masks.front_end import IdentityStart, batch_statistics
from audits.trained_masks.storage import load_run, stored_recipe
from audits.trained_masks.training import new_front_end


def roughness(front_end: nn.Module, images: Tensor, seed: int = 0) -> dict[str, float]:
    """The roughness of a front end's residual on these images.

    Returns:
        ``roughness``; ``residual_sd`` in input units; ``tint``: share of the residual's standard deviation that is
        constant over each channel of an image. All 0 for the identity.
    """
    own = images.detach().requires_grad_()
    residual = own - front_end(own)
    spread = residual.std().item()
    if spread == 0:
        return {"roughness": 0.0, "residual_sd": 0.0, "tint": 0.0}
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    (through,) = torch.autograd.grad(residual, own, direction)
    gain = (through.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)).mean().item()
    return {
        "roughness": gain * images.std().item() / spread,
        "residual_sd": spread,
        "tint": residual.mean((2, 3)).std().item() / spread,
    }


def with_random_readout(front_end: IdentityStart, seed: int = 0) -> IdentityStart:
    """A copy whose last convolution is random again: what is left is the roughness of the layers before it."""
    changed = copy.deepcopy(front_end)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for last in changed.readouts:
            last.weight.copy_(nn.init.orthogonal_(torch.empty(last.weight.shape)))
    return changed


def of_snapshots(files: Iterable[Path], images: Tensor) -> list[dict[str, Any]]:
    """The roughness over training, with statistics of these images in batch norm.

    Returns:
        For each snapshot its ``run`` and ``step``, what `roughness` returns, and ``layers``: the roughness with a
        random last convolution.
    """
    rows = []
    for file in files:
        recipe = stored_recipe(file)
        front_end = new_front_end(recipe)
        step = load_run(file, front_end)
        front_end.requires_grad_(False)
        random = with_random_readout(front_end)
        with batch_statistics(front_end), batch_statistics(random):
            layers = roughness(random, images)["roughness"]
            rows.append({"run": recipe.name, "step": step, **roughness(front_end, images), "layers": layers})
    return rows


def at_start(images: Tensor, sizes: Iterable[tuple[int, int]], *, normalized: bool) -> list[dict[str, Any]]:
    """The roughness of the layers before training, of front ends of these depths and widths."""
    rows = []
    for depth, width in sizes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            front_end = with_random_readout(IdentityStart(depth, width, normalized=normalized)).requires_grad_(False)
        with batch_statistics(front_end):
            layers = roughness(front_end, images)["roughness"]
        rows.append({"depth": depth, "width": width, "normalized": normalized, "layers": layers})
    return rows
