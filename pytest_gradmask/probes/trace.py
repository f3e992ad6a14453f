"""A short gradient attack, watched step by step: what most probes look at.

One path serves them all, so that they cost a few passes and not an attack each. An image leaves it once a gradient has
broken it: where the gradient leads to an adversarial example at once, nothing has to be explained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pytest_gradmask.attacks.evaluate import mean_logit_margins, value_and_grad
from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.threat import ThreatModel

#: Images that a path follows at most.
IMAGES = 12
#: Standing images, below which a share of them says nothing.
FEWEST = 3
#: Radius of each ball, as a share of eps, and the steps taken inside it. Ten steps reach the edge of the threat model.
_STAGES = ((0.5, 4), (1.0, 6), (2.0, 4))


@dataclass(frozen=True, slots=True)
class PGDTrace:
    """What was seen on the way; T looks at each of N images.

    Attributes:
        images, labels: N x C x H x W and N: where it starts. All are classified correctly there.
        threat: its ball of radius eps is the second of three.
        radii: for each look, the radius of the ball it lies in, as a share of eps: 0.5, 1 or 2.
        logit_margins: T x N, float32: largest other logit minus the label's. NaN where an image was no longer followed.
        gradient_norms: T x N, float32: dual norm of the gradient, which is how fast the loss rises, to first order, for
            a step of the threat model's norm. NaN where no gradient was taken; infinite where it is not finite.
        by_logit_margin: for each look, whether the gradient is that of the margin; otherwise of the cross-entropy.
        saturated: T x N, bool: the softmax of the logits is the one-hot label to the last bit of a float32.
        spreads, largest: N, float32: largest minus smallest, and largest absolute, logit of the clean image.
        gradient: N x C x H x W: the margin's at the clean images.
        whole: whether all images were followed to the end.
    """

    images: torch.Tensor
    labels: torch.Tensor
    threat: ThreatModel
    radii: tuple[float, ...]
    logit_margins: torch.Tensor
    gradient_norms: torch.Tensor
    by_logit_margin: tuple[bool, ...]
    saturated: torch.Tensor
    spreads: torch.Tensor
    largest: torch.Tensor
    gradient: torch.Tensor
    whole: bool

    def best(self, radius: float) -> torch.Tensor:
        """For each image, the largest margin seen within ``radius`` times eps; N. NaN logits count as none."""
        within = [number for number, reached in enumerate(self.radii) if reached <= radius]
        return self.logit_margins[within].nan_to_num(nan=float("-inf")).amax(0)

    def standing(self, radius: float) -> torch.Tensor:
        """Whether each image was classified correctly at every look within ``radius`` times eps; bool, N."""
        return self.best(radius) <= 0

    def asked(self, radius: float) -> torch.Tensor:
        """Indices of the images that another probe should ask the defense about: those `standing`.

        None if those are fewer than `FEWEST`. All images if ``whole``: the random numbers of a frozen defense are the
        same for the same number of images.
        """
        standing = self.standing(radius)
        if int(standing.sum()) < FEWEST:
            return standing.new_zeros(0, dtype=torch.long)
        return torch.arange(len(standing), device=standing.device) if self.whole else standing.nonzero().flatten()

    def across(self, share: float) -> float:
        """Size, in the threat model's norm, of a change of every pixel by this share of the bounds' width."""
        change = share * (self.threat.bounds[1] - self.threat.bounds[0])
        return change if self.threat.norm == "Linf" else change * self.images[0].numel() ** 0.5


def trace_pgd(
    oracle: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    eot: int = 1,
    whole: bool = False,
) -> PGDTrace:
    """Follow the gradient from at most `IMAGES` images: 4 steps within eps / 2, 6 within eps and 4 within 2 eps.

    The steps follow the gradients of the margin and of the cross-entropy in turn, so both are seen for the price of
    one. An image at which the margin has a gradient of zero goes on from a random point of the ball; one that is
    misclassified at two looks in a row is followed no further.

    Costs at most 15 forward and 14 backward passes an image and, where the gradient breaks it at once, three
    each way; ``eot`` times that on randomized defenses.

    Args:
        oracle: the defense.
        images, labels: classified correctly; the first `IMAGES` are taken.
        threat: where to search.
        generator: draws the random points; a CPU generator.
        eot: forwards to average at each look, for randomized defenses.
        whole: follow every image to the end, so that each look is at the same number of images.
    """
    images, labels = images[:IMAGES], labels[:IMAGES]
    radii = (0.5, *(radius for radius, steps in _STAGES for _ in range(steps)))
    by_logit_margin = tuple(number % 2 == 0 for number in range(len(radii)))
    shape = len(radii), len(images)
    logit_margins, gradient_norms = (torch.full(shape, float("nan"), device=images.device) for _ in range(2))
    saturated = torch.zeros(shape, dtype=torch.bool, device=images.device)
    spreads = largest = torch.zeros(len(images), device=images.device)
    start = torch.zeros_like(images)
    points = images.clone()
    active = torch.arange(len(images), device=images.device)
    for look in range(len(radii) - 1):
        loss = logit_margin if by_logit_margin[look] else cross_entropy
        seen = value_and_grad(oracle, points[active], labels[active], loss, eot)
        here, gradient, logits = seen.logit_margins, seen.gradient, seen.logits
        logit_margins[look, active], saturated[look, active] = here, _one_hot(logits, labels[active])
        if look == 0:
            spreads, largest, start = logits.amax(1) - logits.amin(1), logits.abs().amax(1), gradient
        gradient_norms[look, active] = dual_norm(gradient, threat)
        stage = replace(threat, eps=_eps(threat, radii[look + 1]))
        size = 2.5 * stage.eps / dict(_STAGES)[radii[look + 1]]
        clean = images[active]
        moved = stage.project(points[active] + size * stage.step(gradient.nan_to_num(0, 0, 0)), clean)
        stuck = (gradient == 0).flatten(1).all(1) & by_logit_margin[look]
        points[active] = torch.where(stuck.view(-1, 1, 1, 1), stage.random_start(clean, generator), moved)
        if look > 0 and not whole:
            active = active[~((here > 0) & (logit_margins[look - 1, active] > 0))]
        if len(active) == 0:
            break
    else:
        logit_margins[-1, active] = mean_logit_margins(oracle, points[active], labels[active], eot)
    return PGDTrace(
        images,
        labels,
        threat,
        radii,
        logit_margins,
        gradient_norms,
        by_logit_margin,
        saturated,
        spreads,
        largest,
        start,
        whole,
    )


def _eps(threat: ThreatModel, radius: float) -> float:
    wide = threat.bounds[1] - threat.bounds[0] if threat.norm == "Linf" else float("inf")
    return min(radius * threat.eps, wide)


def dual_norm(gradient: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """How fast, to first order, each image's loss rises for a step of the threat model's norm; N, inf if not finite."""
    flat = gradient.flatten(1)
    norms = flat.abs().sum(1) if threat.norm == "Linf" else flat.norm(dim=1)
    return norms.float().masked_fill(~norms.isfinite(), float("inf"))


def _one_hot(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.softmax(1).gather(1, labels[:, None]).squeeze(1) == 1
