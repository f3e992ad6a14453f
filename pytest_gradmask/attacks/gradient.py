"""PGD and APGD: attacks that follow the gradient they are given.

Give them the defense and they are gradient attacks; give them a rewired one (`bypassed`) and they are BPDA;
give them another model and what they return is a transfer attack.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pytest_gradmask.attacks.losses import Loss, cross_entropy, margin
from pytest_gradmask.threat import ThreatModel


@dataclass(slots=True)
class _Best:
    """For each image, the iterate with the largest margin so far: the first success wins over any failure."""

    images: torch.Tensor
    margins: torch.Tensor

    @classmethod
    def start(cls, images: torch.Tensor) -> _Best:
        return cls(images.clone(), images.new_full((len(images),), float("-inf"), dtype=torch.float32))

    def update(self, images: torch.Tensor, margins: torch.Tensor) -> None:
        better = margins > self.margins  # false for NaN: an iterate that makes the defense emit NaN is not kept
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
        self.margins = torch.where(better, margins, self.margins)

    def done(self) -> bool:
        return bool((self.margins > 0).all())


def look_at(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, loss: Loss, eot: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a model shows at some points over ``eot`` passes each way (Athalye et al. 2018, EOT).

    Returns:
        Mean loss and mean margin, N, float32; the gradient of the loss, summed over passes and as the model gives it;
        the logits of the last pass.
    """
    point = images.detach().requires_grad_(True)
    gradient = torch.zeros_like(images)
    losses = margins = images.new_zeros(len(images), dtype=torch.float32)
    for _ in range(eot):
        with torch.enable_grad():
            logits = model(point)
            each = loss(logits, labels)
            total = each.sum()
        gradient = gradient + torch.autograd.grad(total, point)[0]
        losses = losses + each.detach() / eot
        margins = margins + margin(logits.detach(), labels) / eot
    return losses, margins, gradient, logits.detach()


def mean_margins(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, eot: int) -> torch.Tensor:
    """Mean margin over ``eot`` forwards, N; no gradient is taken."""
    with torch.no_grad():
        return torch.stack([margin(model(images), labels) for _ in range(eot)]).mean(0)


def _finite_look(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, loss: Loss, eot: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    losses, margins, gradient, _ = look_at(model, images, labels, loss, eot)
    # A NaN in the gradient must not spread to the image: such pixels stay where they are.
    return losses, margins, gradient.nan_to_num(nan=0.0)


def pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    eot: int = 1,
) -> torch.Tensor:
    """Projected gradient descent from random starts (Madry et al. 2018).

    Args:
        model: maps images to logits.
        images: N x C x H x W in the bounds of ``threat``.
        labels: int64, N.
        threat: where to search.
        steps: gradient steps of each restart.
        generator: draws the random starts; a CPU generator.
        step_size: in input units; by default ``2.5 * eps / steps``.
        restarts: independent starts; the best iterate of all is returned.
        loss: what to maximise.
        eot: forwards to average in each step, for randomized defenses.

    Returns:
        For each image the iterate with the largest mean margin, in the ball and the bounds.
    """
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    best = _Best.start(images)
    for _ in range(restarts):
        current = threat.random_start(images, generator)
        for _ in range(steps):
            _, margins, gradient = _finite_look(model, current, labels, loss, eot)
            best.update(current, margins)
            current = threat.project(current + size * threat.step(gradient), images)
        best.update(current, mean_margins(model, current, labels, eot))
        if best.done():
            break
    return best.images


def apgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    eot: int = 1,
    stop_early: bool = True,
) -> torch.Tensor:
    """Auto-PGD (Croce and Hein 2020, Algorithm 1): momentum, and a step size that halves where progress stalls.

    Args:
        stop_early: stop once every image is misclassified by ``model``. A transfer attack goes on,
            because what fools the source with room to spare transfers better.

    The other arguments and the result are those of `pgd`. ``steps`` counts gradient steps of each restart.
    """
    best = _Best.start(images)
    for _ in range(restarts):
        _apgd_run(model, images, labels, threat, steps, generator, loss, eot, best, stop_early)
        if stop_early and best.done():
            break
    return best.images


def _apgd_run(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    loss: Loss,
    eot: int,
    best: _Best,
    stop_early: bool,
) -> None:
    window, window_min, window_shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    size = images.new_full((len(images), 1, 1, 1), 2 * threat.eps)
    current = threat.random_start(images, generator)
    losses, margins, gradient = _finite_look(model, current, labels, loss, eot)
    best.update(current, margins)
    top, top_losses, top_gradient = current, losses, gradient  # the iterate with the highest loss of this run
    previous, last_losses = current, losses
    rises = torch.zeros_like(losses)  # steps of this window that raised the loss
    halved_before, top_before = torch.ones_like(losses, dtype=torch.bool), losses
    since = 0
    for step in range(steps):
        momentum = 1.0 if step == 0 else 0.75
        move = threat.project(current + size * threat.step(gradient), images)
        move = threat.project(current + momentum * (move - current) + (1 - momentum) * (current - previous), images)
        previous, current = current, move
        losses, margins, gradient = _finite_look(model, current, labels, loss, eot)
        best.update(current, margins)
        higher = losses > top_losses
        mask = higher.view(-1, 1, 1, 1)
        top, top_gradient = torch.where(mask, current, top), torch.where(mask, gradient, top_gradient)
        top_losses = torch.where(higher, losses, top_losses)
        rises = rises + (losses > last_losses)
        last_losses = losses
        since += 1
        if since == window:
            if stop_early and best.done():
                return
            halve = (rises <= 0.75 * window) | (~halved_before & (top_before >= top_losses))
            mask = halve.view(-1, 1, 1, 1)
            size = torch.where(mask, size / 2, size)
            current, gradient = torch.where(mask, top, current), torch.where(mask, top_gradient, gradient)
            halved_before, top_before = halve, top_losses
            rises, since = torch.zeros_like(rises), 0
            window = max(window - window_shrink, window_min)
