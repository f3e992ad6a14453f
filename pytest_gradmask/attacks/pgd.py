"""PGD and APGD: attacks that follow the gradient they are given.

Give them the defense and they are gradient attacks; give them a rewired one (`bypassed`) and they are BPDA;
give them another model and what they return is a transfer attack.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from pytest_gradmask.attacks.evaluate import SYNC_EVERY, Ask, Best, finite_value_and_grad, judge, should_sync
from pytest_gradmask.attacks.losses import Loss, cross_entropy
from pytest_gradmask.threat import ThreatModel


def pgd(
    model: Ask,
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
    stop_early: bool = False,
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
        eot: passes over which loss and gradient are averaged in each step, for randomized defenses. Where ``model``
            knows its members (`Oracle`), each is asked once instead, and weighted.
        stop_early: leave an image once ``model`` misclassifies it. What fools a model with room to spare transfers
            better to another, and fools a randomized one more often.

    Returns:
        For each image the iterate with the largest mean margin or, where the members are known, the one that fools
        most of them, in the ball and the bounds.
    """
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    best = Best.start(images)
    for _ in range(restarts):
        current, active = threat.random_start(images, generator), _all(images)
        for step in range(steps):
            if stop_early and should_sync(images, step % SYNC_EVERY):
                kept = best.is_active(active)
                current, active = current[kept], active[kept]
                if len(active) == 0:
                    return best.images
            own, clean = labels[active], images[active]
            seen = finite_value_and_grad(model, current, own, loss, eot)
            best.update(current, seen.logit_margins, seen.fooled, active)
            current = threat.project(current + size * threat.step(seen.gradient), clean)
        best.update(current, *judge(model, current, labels[active], eot), active)
        if best.done():
            break
    return best.images


def apgd(
    model: Ask,
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

    The arguments and the result are those of `pgd`. ``steps`` counts gradient steps of each restart.
    """
    best = Best.start(images)
    for _ in range(restarts):
        _apgd_run(model, images, labels, threat, steps, generator, loss, eot, best, stop_early)
        if stop_early and best.done():
            break
    return best.images


@dataclass(slots=True)
class _Climb:
    """One run of APGD on the images that it still follows; a row of each tensor for each of them.

    Attributes:
        active: their indices.
        images, labels: where they started.
        current, previous: the last two iterates.
        gradient, losses: at the current one.
        top, top_losses, top_gradient: the iterate with the highest loss of this run.
        rises: steps of this window that raised the loss.
        halved, top_before: whether the last window halved the step, and the highest loss before it.
        size: of the next step.
    """

    active: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    current: torch.Tensor
    previous: torch.Tensor
    gradient: torch.Tensor
    losses: torch.Tensor
    top: torch.Tensor
    top_losses: torch.Tensor
    top_gradient: torch.Tensor
    rises: torch.Tensor
    halved: torch.Tensor
    top_before: torch.Tensor
    size: torch.Tensor

    def only(self, kept: torch.Tensor) -> _Climb:
        return self if bool(kept.all()) else _Climb(*(getattr(self, own.name)[kept] for own in fields(self)))


def _apgd_run(
    model: Ask,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    loss: Loss,
    eot: int,
    best: Best,
    stop_early: bool,
) -> None:
    window, window_min, window_shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    active = best.open() if stop_early else _all(images)
    start = threat.random_start(images, generator)[active]
    seen = finite_value_and_grad(model, start, labels[active], loss, eot)
    best.update(start, seen.logit_margins, seen.fooled, active)
    at = _Climb(
        active, images[active], labels[active], start, start, seen.gradient, seen.losses,
        start, seen.losses, seen.gradient, torch.zeros_like(seen.losses),
        torch.ones_like(seen.losses, dtype=torch.bool), seen.losses,
        start.new_full((len(start), 1, 1, 1), 2 * threat.eps),
    )  # fmt: skip
    since = 0
    for step in range(steps):
        if stop_early and should_sync(images, since):
            at = at.only(best.is_active(at.active))
            if len(at.active) == 0:
                return
        momentum = 1.0 if step == 0 else 0.75
        move = threat.project(at.current + at.size * threat.step(at.gradient), at.images)
        inertia = momentum * (move - at.current) + (1 - momentum) * (at.current - at.previous)
        at.previous, at.current = at.current, threat.project(at.current + inertia, at.images)
        seen = finite_value_and_grad(model, at.current, at.labels, loss, eot)
        best.update(at.current, seen.logit_margins, seen.fooled, at.active)
        at.rises = at.rises + (seen.losses > at.losses)
        at.gradient, at.losses = seen.gradient, seen.losses
        higher = at.losses > at.top_losses
        mask = higher.view(-1, 1, 1, 1)
        at.top, at.top_gradient = torch.where(mask, at.current, at.top), torch.where(mask, at.gradient, at.top_gradient)
        at.top_losses = torch.where(higher, at.losses, at.top_losses)
        since += 1
        if since == window:
            halve = (at.rises <= 0.75 * window) | (~at.halved & (at.top_before >= at.top_losses))
            mask = halve.view(-1, 1, 1, 1)
            at.size = torch.where(mask, at.size / 2, at.size)
            at.current = torch.where(mask, at.top, at.current)
            at.gradient = torch.where(mask, at.top_gradient, at.gradient)
            at.halved, at.top_before = halve, at.top_losses
            at.rises, since = torch.zeros_like(at.rises), 0
            window = max(window - window_shrink, window_min)


def _all(images: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(images), device=images.device)
