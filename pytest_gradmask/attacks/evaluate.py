"""What attacks ask of a model at each iterate, and the best iterate so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pytest_gradmask.attacks.losses import Loss, logit_margin
from pytest_gradmask.attacks.oracle import Oracle

#: Steps after which an attack may stop a GPU to ask which images are done.
SYNC_EVERY = 10
#: From images to logits: a module, or one member of an ensemble.
Ask = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class Best:
    """For each image, the iterate that fools most of the known members; of equals, the one with the largest margin.

    A model without members counts as fooled or not by the margin alone: the first success wins over any failure.
    """

    images: torch.Tensor
    logit_margins: torch.Tensor
    fooled: torch.Tensor

    @classmethod
    def start(cls, images: torch.Tensor) -> Best:
        lowest = images.new_full((len(images),), float("-inf"), dtype=torch.float32)
        return cls(images.clone(), lowest, torch.zeros_like(lowest))

    def update(
        self,
        images: torch.Tensor,
        logit_margins: torch.Tensor,
        fooled: torch.Tensor | None = None,
        active: torch.Tensor | None = None,
    ) -> None:
        """Take iterates of all images or, at these indices, of those still ``active``."""
        if fooled is None:
            fooled = (logit_margins > 0).float()
        if active is not None and len(active) == len(self.images):
            active = None  # indices copy
        known = self if active is None else Best(self.images[active], self.logit_margins[active], self.fooled[active])
        # False for NaN: an iterate that makes the defense emit NaN is not kept.
        better = (logit_margins > known.logit_margins) & (fooled == known.fooled) | (fooled > known.fooled)
        improved = (
            torch.where(better.view(-1, 1, 1, 1), images, known.images),
            torch.where(better, logit_margins, known.logit_margins),
            torch.where(better, fooled, known.fooled),
        )
        if active is None:
            self.images, self.logit_margins, self.fooled = improved
        else:
            self.images[active], self.logit_margins[active], self.fooled[active] = improved

    def open(self) -> torch.Tensor:
        """Indices of the images that do not fool the model yet."""
        return (self.fooled < 1).nonzero()[:, 0]

    def is_active(self, active: torch.Tensor) -> torch.Tensor:
        """Which of the images with these indices do not fool the model yet; bool."""
        return self.fooled[active] < 1

    def done(self) -> bool:
        return bool((self.fooled >= 1).all())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model shows at some points.

    Attributes:
        losses: their means over all passes, N, float32.
        logit_margins: the same.
        fooled: share of the known members that misclassify, by weight, N; None where no members are known.
        gradient: of the mean loss, as the model gives it.
        logits: of the last pass.
    """

    losses: torch.Tensor
    logit_margins: torch.Tensor
    fooled: torch.Tensor | None
    gradient: torch.Tensor
    logits: torch.Tensor


def value_and_grad(model: Ask, images: torch.Tensor, labels: torch.Tensor, loss: Loss, eot: int) -> Evaluation:
    """Expectation over transformation (EOT; Athalye et al. 2018): means of losses and gradients over passes.

    The passes are ``eot`` of the model or, where its members are known, one of each, weighted: the expectation itself.
    """
    point = images.detach().requires_grad_(True)
    gradient = torch.zeros_like(images)
    losses = logit_margins = images.new_zeros(len(images), dtype=torch.float32)
    passes = _passes(model, eot)
    shares = []
    for weight, ask in passes:
        with torch.enable_grad():
            logits = ask(point)
            each = loss(logits, labels)
            total = each.sum()
        gradient = gradient + weight * torch.autograd.grad(total, point)[0]
        reached = logit_margin(logits.detach(), labels)
        losses = losses + weight * each.detach()
        logit_margins = logit_margins + weight * reached
        shares.append((weight, reached))
    return Evaluation(losses, logit_margins, _fooled(model, shares), gradient, logits.detach())


def mean_logit_margins(model: Ask, images: torch.Tensor, labels: torch.Tensor, eot: int) -> torch.Tensor:
    """Mean margin over ``eot`` forwards or, where the members are known, one of each, N; no gradient is taken."""
    return judge(model, images, labels, eot)[0]


def judge(model: Ask, images: torch.Tensor, labels: torch.Tensor, eot: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Margins and share of fooled members, as in `Evaluation`; no gradient is taken."""
    with torch.no_grad():
        shares = [(weight, logit_margin(ask(images), labels)) for weight, ask in _passes(model, eot)]
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


def finite_value_and_grad(model: Ask, images: torch.Tensor, labels: torch.Tensor, loss: Loss, eot: int) -> Evaluation:
    """`value_and_grad` with zeros in place of NaN: such pixels stay where they are, and NaN does not spread."""
    seen = value_and_grad(model, images, labels, loss, eot)
    return replace(seen, gradient=seen.gradient.nan_to_num(nan=0.0))


def should_sync(images: torch.Tensor, since: int) -> bool:
    """Whether to ask which images are done: for a CPU always; a GPU would have to stop for the answer."""
    return images.device.type == "cpu" or since == 0
