"""Zero-order PGD: an attack that never asks for a gradient.

The other one, Square, is AutoAttack's: `attacks.autoattack.square`.
"""

from __future__ import annotations

import torch
from torch import nn

from pytest_gradmask.attacks.evaluate import SYNC_EVERY, Best, judge, should_sync
from pytest_gradmask.attacks.losses import Loss, logit_margin
from pytest_gradmask.threat import ThreatModel


def zero_order(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    pairs: int = 10,
    radius: float | None = None,
    cell: int = 4,
    step_size: float | None = None,
    loss: Loss = logit_margin,
    eot: int = 1,
) -> torch.Tensor:
    """PGD along a gradient estimated from antithetic pairs of queries (NES; Ilyas et al. 2018).

    Noise is constant on cells of pixels, the data-dependent prior of Ilyas, Engstrom and Madry (2019): image
    gradients have most of their energy at low frequencies, and fewer dimensions need fewer queries.
    Each image's estimate uses that image's losses only. Makes ``steps * (2 * pairs + eot) + eot`` queries
    an image, fewer of one that falls: a deterministic model's is then left.

    Args:
        pairs: antithetic pairs a step.
        radius: standard deviation of the noise, in input units; by default half of eps (Linf) or what has half of
            its norm (L2).
        cell: side of the cells in pixels; 1 draws every pixel by itself.
        step_size: in input units; by default ``2.5 * eps / steps``.
        eot: forwards by which an iterate is judged, for randomized defenses. The pairs average over their noise as it
            is: each makes passes of its own.

    The other arguments and the result are those of `pgd`.
    """
    count, channels, height, width = images.shape
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    if radius is None:
        radius = threat.eps / 2 if threat.norm == "Linf" else threat.eps / 2 / (images[0].numel() ** 0.5)
    best = Best.start(images)
    current, active = images, torch.arange(count, device=images.device)
    coarse = (count, channels, -(-height // cell), -(-width // cell))
    with torch.no_grad():
        for step in range(steps):
            best.update(current, *judge(model, current, labels[active], eot), active)
            if should_sync(images, step % SYNC_EVERY):
                kept = best.is_active(active)
                if not kept.any():
                    return best.images
                if eot == 1:  # what fools a randomized defense once may yet fool it more often
                    current, active = current[kept], active[kept]
            gradient, own = torch.zeros_like(current), labels[active]
            for _ in range(pairs):
                # Drawn for all, so that what becomes of an image does not depend on when others fall.
                noise = torch.randn(coarse, generator=generator, dtype=images.dtype).to(images.device)[active]
                noise = noise.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[:, :, :height, :width]
                up, down = ((current + sign * radius * noise).clamp(*threat.bounds) for sign in (1, -1))
                losses = loss(model(torch.cat([up, down])), own.repeat(2))
                slope = losses[: len(own)] - losses[len(own) :]
                gradient += slope.to(images.dtype).view(-1, 1, 1, 1) * noise
            current = threat.project(current + size * threat.step(gradient.nan_to_num(nan=0.0)), images[active])
        best.update(current, *judge(model, current, labels[active], eot), active)
    return best.images
