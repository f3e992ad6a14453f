"""The PGD trace: a short gradient attack that is recorded step by step, for most probes to analyse.

All probes share one trace, so that they cost a few passes together, and not an attack each. An image is no longer
attacked once the gradient has broken it: then there is nothing to explain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_gradmask.attacks.evaluate import mean_logit_margins, value_and_grad
from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.threat import ThreatModel, per_image

#: Largest number of images in a trace.
MAX_IMAGES = 12
#: Least number of survivors. A share of fewer images says nothing.
MIN_SURVIVORS = 3
#: Radius of each ball, as a share of eps, and the steps inside it. Ten steps reach the boundary of the threat model.
_STAGES = ((0.5, 4), (1.0, 6), (2.0, 4))


@dataclass(frozen=True, kw_only=True, slots=True)
class PGDTrace:
    """The record of T evaluations of N images.

    Attributes:
        images, labels: the start, N x C x H x W and N. All images are classified correctly.
        threat: its ball of radius eps is the second of the three balls.
        radii: for each evaluation, the radius of the ball of the iterates, as a share of eps: 0.5, 1 or 2.
        logit_margins: T x N, float32: the largest other logit minus the label's. NaN where an image was not active any
            more.
        gradient_norms: T x N, float32: dual norm of the gradient. To first order, this is the increase of the loss for
            a step of length 1 in the threat model's norm. NaN where no gradient was taken; infinite where the gradient
            is not finite.
        by_logit_margin: for each evaluation, whether the gradient is that of the logit margin. Otherwise, it is that of
            the cross-entropy.
        saturated: T x N, bool: the softmax of the label's logit is exactly 1 as a float32.
        logit_ranges: N, float32: largest minus smallest logit of the clean image.
        largest_logits: N, float32: largest absolute logit of the clean image.
        clean_gradient: N x C x H x W: gradient of the logit margin at the clean images.
        all_active: whether all images stayed active to the end.
    """

    images: Tensor
    labels: Tensor
    threat: ThreatModel
    radii: tuple[float, ...]
    logit_margins: Tensor
    gradient_norms: Tensor
    by_logit_margin: tuple[bool, ...]
    saturated: Tensor
    logit_ranges: Tensor
    largest_logits: Tensor
    clean_gradient: Tensor
    all_active: bool

    def best_logit_margins(self, radius: float) -> Tensor:
        """For each image, the largest logit margin within ``radius`` times eps; N. NaN values are left out."""
        within = [index for index, reached in enumerate(self.radii) if reached <= radius]
        return self.logit_margins[within].nan_to_num(nan=float("-inf")).amax(0)

    def survivors(self, radius: float) -> Tensor:
        """Whether each image was classified correctly in all evaluations within ``radius`` times eps; bool, N."""
        return self.best_logit_margins(radius) <= 0

    def indices_to_query(self, radius: float) -> Tensor:
        """Indices of the images for which another probe should query the defense: the `survivors`.

        There are none if fewer than `MIN_SURVIVORS` images survive. If ``all_active``, these are all images, because a
        frozen defense uses the same random numbers only for the same number of images.
        """
        survivors = self.survivors(radius)
        if int(survivors.sum()) < MIN_SURVIVORS:
            return survivors.new_zeros(0, dtype=torch.long)
        if self.all_active:
            return torch.arange(len(survivors), device=survivors.device)
        return survivors.nonzero().flatten()

    def size_of_change(self, share: float) -> float:
        """Size, in the threat model's norm, of a change of every pixel by this share of the bounds' width."""
        change = share * (self.threat.bounds[1] - self.threat.bounds[0])
        return change * self.threat.eps / self.threat.pixel_eps(self.images[0].numel())


def trace_pgd(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    *,
    eot: int = 1,
    all_active: bool = False,
) -> PGDTrace:
    """Run PGD on at most `MAX_IMAGES` images: 4 steps within eps / 2, 6 steps within eps and 4 steps within 2 eps.

    The steps follow the gradients of the logit margin and of the cross-entropy in turn, so that both are observed at
    the cost of one. If the gradient of the logit margin is zero, the image goes on from a random point of the ball. An
    image that is misclassified in two evaluations in a row is no longer attacked.

    Each image costs at most 15 forward and 14 backward passes. It costs 3 passes in each direction if the gradient
    breaks it at once. On randomized defenses, all this is multiplied by ``eot``.

    Args:
        oracle: the defense.
        images, labels: classified correctly; the first `MAX_IMAGES` are taken.
        threat: where to search.
        generator: draws the random points; a CPU generator.
        eot: forward passes to average in each evaluation, for randomized defenses.
        all_active: attack every image to the end, so that all evaluations have the same number of images.
    """
    images, labels = images[:MAX_IMAGES], labels[:MAX_IMAGES]
    radii = (0.5, *(radius for radius, steps in _STAGES for _ in range(steps)))
    by_logit_margin = tuple(index % 2 == 0 for index in range(len(radii)))
    shape = len(radii), len(images)
    logit_margins, gradient_norms = (torch.full(shape, float("nan"), device=images.device) for _ in range(2))
    saturated = torch.zeros(shape, dtype=torch.bool, device=images.device)
    logit_ranges = largest_logits = torch.zeros(len(images), device=images.device)
    clean_gradient = torch.zeros_like(images)
    x_adv = images.clone()
    active = torch.arange(len(images), device=images.device)
    for index in range(len(radii) - 1):
        loss = logit_margin if by_logit_margin[index] else cross_entropy
        evaluation = value_and_grad(oracle, x_adv[active], labels[active], loss, eot)
        margins, gradient, logits = evaluation.logit_margins, evaluation.gradient, evaluation.logits
        logit_margins[index, active], saturated[index, active] = margins, _is_saturated(logits, labels[active])
        if index == 0:
            logit_ranges, largest_logits = logits.amax(1) - logits.amin(1), logits.abs().amax(1)
            clean_gradient = gradient
        gradient_norms[index, active] = dual_norm(gradient, threat)
        stage = replace(threat, eps=_clipped_eps(threat, radii[index + 1]))
        step_size = 2.5 * stage.eps / dict(_STAGES)[radii[index + 1]]
        clean = images[active]
        moved = stage.project(x_adv[active] + step_size * stage.step(gradient.nan_to_num(0, 0, 0)), clean)
        stuck = (gradient == 0).flatten(1).all(1) & by_logit_margin[index]
        x_adv[active] = torch.where(per_image(stuck, moved), stage.random_start(clean, generator), moved)
        if index > 0 and not all_active:
            active = active[~((margins > 0) & (logit_margins[index - 1, active] > 0))]
        if len(active) == 0:
            break
    else:
        logit_margins[-1, active] = mean_logit_margins(oracle, x_adv[active], labels[active], eot)
    return PGDTrace(
        images=images,
        labels=labels,
        threat=threat,
        radii=radii,
        logit_margins=logit_margins,
        gradient_norms=gradient_norms,
        by_logit_margin=by_logit_margin,
        saturated=saturated,
        logit_ranges=logit_ranges,
        largest_logits=largest_logits,
        clean_gradient=clean_gradient,
        all_active=all_active,
    )


def _clipped_eps(threat: ThreatModel, radius: float) -> float:
    widest = threat.bounds[1] - threat.bounds[0] if threat.norm == "Linf" else float("inf")
    return min(radius * threat.eps, widest)


def dual_norm(gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Dual norm of each image's gradient; N, infinite if not finite.

    To first order, this is the increase of the loss for a step of length 1 in the threat model's norm.
    """
    norms = threat.dual_norm(gradient)
    return norms.float().masked_fill(~norms.isfinite(), float("inf"))


def _is_saturated(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, labels[:, None]).squeeze(1) == 1
