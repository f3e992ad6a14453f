"""PGD and APGD: attacks that follow the gradient they are given.

Give them the defense and they are gradient attacks; give them a rewired one (`bypassed`) and they are BPDA;
give them another model and what they return is a transfer attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pytest_gradmask.attacks.losses import Loss, cross_entropy, margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.threat import ThreatModel

#: From images to logits: a module, or one member of an ensemble.
Ask = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class Best:
    """For each image, the iterate that fools most of the known members; of equals, the one with the largest margin.

    A model without members counts as fooled or not by the margin alone: the first success wins over any failure.
    """

    images: torch.Tensor
    margins: torch.Tensor
    fooled: torch.Tensor

    @classmethod
    def start(cls, images: torch.Tensor) -> Best:
        lowest = images.new_full((len(images),), float("-inf"), dtype=torch.float32)
        return cls(images.clone(), lowest, torch.zeros_like(lowest))

    def update(self, images: torch.Tensor, margins: torch.Tensor, fooled: torch.Tensor | None = None) -> None:
        if fooled is None:
            fooled = (margins > 0).float()
        # False for NaN: an iterate that makes the defense emit NaN is not kept.
        better = (margins > self.margins) & (fooled == self.fooled) | (fooled > self.fooled)
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
        self.margins = torch.where(better, margins, self.margins)
        self.fooled = torch.where(better, fooled, self.fooled)

    def done(self) -> bool:
        return bool((self.fooled >= 1).all())


@dataclass(frozen=True, slots=True)
class Look:
    """What a model shows at some points.

    Attributes:
        losses: their means over all passes, N, float32.
        margins: the same.
        fooled: share of the known members that misclassify, by weight, N; None where no members are known.
        gradient: of the mean loss, as the model gives it.
        logits: of the last pass.
    """

    losses: torch.Tensor
    margins: torch.Tensor
    fooled: torch.Tensor | None
    gradient: torch.Tensor
    logits: torch.Tensor


def look_at(model: Ask, images: torch.Tensor, labels: torch.Tensor, loss: Loss, eot: int) -> Look:
    """Expectation over transformation (EOT; Athalye et al. 2018): means of losses and gradients over passes.

    The passes are ``eot`` of the model or, where its members are known, one of each, weighted: the expectation itself.
    """
    point = images.detach().requires_grad_(True)
    gradient = torch.zeros_like(images)
    losses = margins = images.new_zeros(len(images), dtype=torch.float32)
    passes = _passes(model, eot)
    shares = []
    for weight, ask in passes:
        with torch.enable_grad():
            logits = ask(point)
            each = loss(logits, labels)
            total = each.sum()
        gradient = gradient + weight * torch.autograd.grad(total, point)[0]
        reached = margin(logits.detach(), labels)
        losses = losses + weight * each.detach()
        margins = margins + weight * reached
        shares.append((weight, reached))
    return Look(losses, margins, _fooled(model, shares), gradient, logits.detach())


def mean_margins(model: Ask, images: torch.Tensor, labels: torch.Tensor, eot: int) -> torch.Tensor:
    """Mean margin over ``eot`` forwards or, where the members are known, one of each, N; no gradient is taken."""
    return judge(model, images, labels, eot)[0]


def judge(model: Ask, images: torch.Tensor, labels: torch.Tensor, eot: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Margins and share of fooled members, as in `Look`; no gradient is taken."""
    with torch.no_grad():
        shares = [(weight, margin(ask(images), labels)) for weight, ask in _passes(model, eot)]
    return torch.stack([weight * reached for weight, reached in shares]).sum(0), _fooled(model, shares)


def _passes(model: Ask, eot: int) -> list[tuple[float, Ask]]:
    if isinstance(model, Oracle) and model.members:
        return list(zip(model.weights, model.members, strict=True))
    return [(1 / eot, model)] * eot


def _fooled(model: Ask, shares: list[tuple[float, torch.Tensor]]) -> torch.Tensor | None:
    """Only where members are known: of a few random passes, a lucky share would win over a good mean."""
    if not (isinstance(model, Oracle) and model.members):
        return None
    # The members that are not fooled, so that a share of one is exactly one.
    return 1 - torch.stack([weight * (~(reached > 0)).float() for weight, reached in shares]).sum(0)


def _finite_look(model: Ask, images: torch.Tensor, labels: torch.Tensor, loss: Loss, eot: int) -> Look:
    seen = look_at(model, images, labels, loss, eot)
    # A NaN in the gradient must not spread to the image: such pixels stay where they are.
    return replace(seen, gradient=seen.gradient.nan_to_num(nan=0.0))


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

    Returns:
        For each image the iterate with the largest mean margin or, where the members are known, the one that fools
        most of them, in the ball and the bounds.
    """
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    best = Best.start(images)
    for _ in range(restarts):
        current = threat.random_start(images, generator)
        for _ in range(steps):
            seen = _finite_look(model, current, labels, loss, eot)
            best.update(current, seen.margins, seen.fooled)
            current = threat.project(current + size * threat.step(seen.gradient), images)
        best.update(current, *judge(model, current, labels, eot))
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

    Args:
        stop_early: stop once every image is misclassified by ``model``. A transfer attack goes on,
            because what fools the source with room to spare transfers better.

    The other arguments and the result are those of `pgd`. ``steps`` counts gradient steps of each restart.
    """
    best = Best.start(images)
    for _ in range(restarts):
        _apgd_run(model, images, labels, threat, steps, generator, loss, eot, best, stop_early)
        if stop_early and best.done():
            break
    return best.images


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
    size = images.new_full((len(images), 1, 1, 1), 2 * threat.eps)
    current = threat.random_start(images, generator)
    seen = _finite_look(model, current, labels, loss, eot)
    losses, gradient = seen.losses, seen.gradient
    best.update(current, seen.margins, seen.fooled)
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
        seen = _finite_look(model, current, labels, loss, eot)
        losses, gradient = seen.losses, seen.gradient
        best.update(current, seen.margins, seen.fooled)
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
