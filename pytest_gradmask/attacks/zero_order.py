"""Zero-order PGD: a black-box attack that estimates the gradient from queries (NES).

The other score-based attack is AutoAttack's Square: `attacks.autoattack.square`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.evaluate import SYNC_EVERY, BestIterates, logit_margins_and_fooled, should_sync
from pytest_gradmask.attacks.losses import Loss, logit_margin
from pytest_gradmask.threat import ThreatModel


def zero_order(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
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
) -> Tensor:
    """PGD along a gradient estimated from antithetic pairs of queries (NES; Ilyas et al. 2018, arXiv:1804.08598).

    The noise is constant on cells of pixels, which is the data-dependent prior of Ilyas, Engstrom and Madry (2019,
    arXiv:1807.07978): gradients of images have most of their energy at low frequencies, and fewer dimensions need
    fewer queries. The estimate for an image uses the losses of this image only.

    Each image takes ``steps * (2 * pairs + eot) + eot`` queries. On a deterministic model (``eot=1``) it takes fewer
    once it is broken, because the attack then leaves it out.

    Args:
        pairs: antithetic pairs of queries in each step.
        radius: standard deviation of the noise, in input units. By default half of eps (Linf), or the value at which
            the expected norm of the noise is about half of eps (L2).
        cell: side of the cells in pixels; 1 draws every pixel independently.
        step_size: in input units; by default ``2.5 * eps / steps``.
        eot: forward passes over which the logit margin of an iterate is averaged, for randomized defenses. The
            queries of the pairs are not repeated: their number averages over the noise of the defense as well.

    The other arguments and the result are those of `pgd`.
    """
    count, channels, height, width = images.shape
    alpha = 2.5 * threat.eps / steps if step_size is None else step_size
    if radius is None:
        radius = threat.eps / 2 if threat.norm == "Linf" else threat.eps / 2 / (images[0].numel() ** 0.5)
    best = BestIterates.start(images)
    x_adv, active = images, torch.arange(count, device=images.device)
    coarse_shape = (count, channels, -(-height // cell), -(-width // cell))
    with torch.no_grad():
        for step in range(steps):
            best.update(x_adv, *logit_margins_and_fooled(model, x_adv, labels[active], eot), active)
            if should_sync(images, step % SYNC_EVERY):
                still_active = best.is_active(active)
                if not still_active.any():
                    return best.adv_best
                if eot == 1:  # a randomized defense that is fooled once can be fooled more often
                    x_adv, active = x_adv[still_active], active[still_active]
            grad, active_labels = torch.zeros_like(x_adv), labels[active]
            for _ in range(pairs):
                # Drawn for all images, so that the noise of an image does not depend on when others are broken.
                noise = torch.randn(coarse_shape, generator=generator, dtype=images.dtype).to(images.device)[active]
                noise = noise.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[:, :, :height, :width]
                plus, minus = ((x_adv + sign * radius * noise).clamp(*threat.bounds) for sign in (1, -1))
                losses = loss(model(torch.cat([plus, minus])), active_labels.repeat(2))
                difference = losses[: len(active)] - losses[len(active) :]
                grad += difference.to(images.dtype).view(-1, 1, 1, 1) * noise
            x_adv = threat.project(x_adv + alpha * threat.step(grad.nan_to_num(nan=0.0)), images[active])
        best.update(x_adv, *logit_margins_and_fooled(model, x_adv, labels[active], eot), active)
    return best.adv_best
