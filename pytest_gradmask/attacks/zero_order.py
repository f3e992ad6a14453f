"""Zero-order PGD: a black-box attack that estimates the gradient from queries, with its last estimate as a prior.

The other score-based attack is AutoAttack's Square: `attacks.autoattack.square`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.evaluate import SYNC_EVERY, BestIterates, logit_margins_and_fooled, should_sync
from pytest_gradmask.attacks.hopeless import GiveUp, never
from pytest_gradmask.attacks.losses import Loss, logit_margin
from pytest_gradmask.execution.precision import guiding
from pytest_gradmask.threat import PerturbationSet, ThreatModel, per_image, pixel_eps

#: What an infinite difference of losses counts as.
_LARGE = 1e30


def zero_order(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    steps: int,
    generator: torch.Generator,
    pairs: int = 10,
    radius: float | None = None,
    cell: int = 4,
    step_size: float | None = None,
    loss: Loss = logit_margin,
    eot: int = 1,
    give_up: GiveUp = never,
) -> Tensor:
    """PGD along a gradient estimated from antithetic pairs of queries (as in NES; Ilyas et al. 2018, arXiv:1804.08598).

    The noise is constant on cells of pixels, which is the data-dependent prior of Ilyas, Engstrom and Madry (2019,
    arXiv:1807.07978): gradients of images have most of their energy at low frequencies, and fewer dimensions need
    fewer queries. The estimate for an image uses the losses of this image only.

    Gradients at consecutive iterates are alike. So one pair goes along the estimate of the last step, in place of
    noise, and the new estimate is the projection of the gradient onto the span of all directions. This is the
    prior-guided estimate of Cheng et al. (2019, arXiv:1906.06919) with the history as its prior (Cheng, Wu and Zhu
    2021, arXiv:2107.10110), which needs neither further queries nor another model.

    Each image takes ``steps * (2 * pairs + eot) + eot`` queries. On a deterministic model (``eot=1``) it takes fewer
    once it is broken, because the attack then leaves it out.

    Args:
        pairs: antithetic pairs of queries in each step.
        radius: standard deviation of the noise, in input units. By default half of eps (Linf), or the value at which
            the expected norm of the noise is about half of eps (L2 and L1). In a set that is no ball, half of eps; the
            noise then is a step of the set, so that a patch is not asked about what is outside of it.
        cell: side of the cells in pixels; 1 draws every pixel independently.
        step_size: in input units; by default ``2.5 * eps / steps``.
        eot: forward passes over which the logit margin of an iterate is averaged, for randomized defenses. The
            queries of the pairs are not repeated: their number averages over the noise of the defense as well.
        give_up: is asked before each step which images are hopeless.

    The other arguments and the result are those of `pgd`.
    """
    alpha = 2.5 * threat.eps / steps if step_size is None else step_size
    if radius is None:
        radius = pixel_eps(threat, images[0].numel()) / 2
    best = BestIterates.start(images)
    x_adv, active = images, torch.arange(len(images), device=images.device)
    coarse_shape = images.shape
    if images.ndim > 3:  # other inputs have no cells
        coarse_shape = torch.Size([*images.shape[:-2], *(-(-side // cell) for side in images.shape[-2:])])
    ball = isinstance(threat, ThreatModel)
    prior = torch.zeros(coarse_shape if ball else images.shape, dtype=images.dtype, device=images.device)
    with torch.no_grad():
        for step in range(steps):
            best.update(x_adv, *logit_margins_and_fooled(model, x_adv, labels[active], eot), active)
            if step == 0:
                before = best.logit_margin_best.clone()
            if should_sync(images, step % SYNC_EVERY):
                if best.all_fooled():
                    return best.adv_best
                going_on = ~give_up(before[active], best.logit_margin_best[active], step / steps)
                if eot == 1:  # a randomized defense that is fooled once can be fooled more often
                    going_on &= best.is_active(active)
                x_adv, active, prior = x_adv[going_on], active[going_on], prior[going_on]
                if len(active) == 0:
                    return best.adv_best
            directions, differences, active_labels = [], [], labels[active]
            for pair in range(pairs):
                # Drawn for all images, so that the noise of an image does not depend on when others are broken.
                direction = torch.randn(coarse_shape, generator=generator, dtype=images.dtype).to(images.device)[active]
                if not ball:
                    direction = _fine(direction, cell, images)
                if pair == 0 and pairs > 1:  # a single pair along the prior would never leave it
                    direction = torch.where(per_image(prior.flatten(1).any(1), prior), prior, direction)
                if ball:
                    noise = _fine(direction, cell, images)
                else:
                    noise = direction = threat.step(direction, at=x_adv)
                plus, minus = ((x_adv + sign * radius * noise).clamp(*threat.bounds) for sign in (1, -1))
                with guiding():
                    losses = loss(model(torch.cat([plus, minus])), active_labels.repeat(2))
                directions.append(direction)
                differences.append(losses[: len(active)] - losses[len(active) :])
            prior = _projection(torch.stack(directions, 1), torch.stack(differences, 1))
            gradient = _fine(prior, cell, images) if ball else prior
            x_adv = threat.project(x_adv + alpha * threat.step(gradient), images[active])
        best.update(x_adv, *logit_margins_and_fooled(model, x_adv, labels[active], eot), active)
    return best.adv_best


def _fine(coarse: Tensor, cell: int, images: Tensor) -> Tensor:
    """Each value as a square of so many pixels, as far as it is inside of the images."""
    if images.ndim < 4:
        return coarse
    height, width = images.shape[-2:]
    return coarse.repeat_interleave(cell, -2).repeat_interleave(cell, -1)[..., :height, :width]


def _projection(directions: Tensor, differences: Tensor) -> Tensor:
    """The least gradient that explains the differences: the projection of the true one onto the span of the directions.

    Args:
        directions: N x P x ..., which may depend on each other.
        differences: of the loss along each, N x P. One that is NaN counts as none.

    Returns:
        N x ..., with a mean square of 1 like the noise; zero where no difference is left.
    """
    basis = directions.flatten(2).double()
    values = differences.double().nan_to_num(nan=0.0, posinf=_LARGE, neginf=-_LARGE)
    products = basis @ basis.mT
    ridge = 1e-6 * products.diagonal(dim1=1, dim2=2).mean(1)  # directions may depend on each other
    products = products + ridge[:, None, None] * torch.eye(values.shape[1], dtype=basis.dtype, device=basis.device)
    # Without a check of errors, for which a GPU would have to wait.
    coefficients, _ = torch.linalg.solve_ex(products, values, check_errors=False)
    gradient = (coefficients[:, None] @ basis)[:, 0]
    gradient = gradient / gradient.square().mean(1, keepdim=True).sqrt().clamp_min(1e-300)
    projected: Tensor = gradient.to(directions.dtype).view_as(directions[:, 0])
    return projected
