"""Evaluations of a model at the iterates of an attack, and the best iterate so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_gradmask.attacks.losses import Loss, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.protocol import Classifier
from pytest_gradmask.threat import per_image

#: Number of steps between two synchronisations of an attack on a GPU. Only there does it learn which images are done.
SYNC_EVERY = 10


@dataclass(slots=True)
class BestIterates:
    """The best iterate of each image so far: the one that fools the largest share of the known members.

    Among iterates with the same share, the one with the largest logit margin is the best. A model without known
    members counts as fooled where the logit margin is above 0, so that a success is always better than a failure.

    Attributes:
        adv_best: the iterates, N x C x H x W.
        logit_margin_best: their logit margins, N.
        fooled_best: the share of the members that they fool, by weight, N.
    """

    adv_best: Tensor
    logit_margin_best: Tensor
    fooled_best: Tensor

    @classmethod
    def start(cls, images: Tensor) -> BestIterates:
        """The clean images, which every evaluated iterate improves on."""
        lowest = images.new_full((len(images),), float("-inf"), dtype=torch.float32)
        return cls(images.clone(), lowest, torch.zeros_like(lowest))

    def update(
        self,
        x_adv: Tensor,
        logit_margins: Tensor,
        fooled: Tensor | None = None,
        active: Tensor | None = None,
    ) -> None:
        """Keep each iterate that is better than the best one so far.

        Args:
            x_adv: iterates of all images or, with ``active``, of the images at these indices.
            logit_margins: of the iterates.
            fooled: the share of the members that they fool; by default, 1 where the logit margin is above 0, else 0.
            active: indices of the images.
        """
        if fooled is None:
            fooled = (logit_margins > 0).float()
        if active is not None and len(active) == len(self.adv_best):
            active = None  # indexing would copy all images
        if active is None:
            before = self
        else:
            before = BestIterates(self.adv_best[active], self.logit_margin_best[active], self.fooled_best[active])
        # False for NaN: an iterate at which the defense returns NaN is not kept.
        better = (logit_margins > before.logit_margin_best) & (fooled == before.fooled_best)
        better |= fooled > before.fooled_best
        improved = (
            torch.where(per_image(better, x_adv), x_adv, before.adv_best),
            torch.where(better, logit_margins, before.logit_margin_best),
            torch.where(better, fooled, before.fooled_best),
        )
        if active is None:
            self.adv_best, self.logit_margin_best, self.fooled_best = improved
        else:
            self.adv_best[active], self.logit_margin_best[active], self.fooled_best[active] = improved

    def active_indices(self) -> Tensor:
        """Indices of the images that do not fool the model yet."""
        return (self.fooled_best < 1).nonzero()[:, 0]

    def is_active(self, indices: Tensor) -> Tensor:
        """Whether each image at these indices does not fool the model yet; bool."""
        return self.fooled_best[indices] < 1

    def all_fooled(self) -> bool:
        """Whether every image fools the model."""
        return bool((self.fooled_best >= 1).all())


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The values of a model at some iterates.

    Attributes:
        losses: mean over all passes, N, float32.
        logit_margins: mean over all passes, N, float32.
        fooled: share of the known members that misclassify, by weight, N; None where no members are known.
        gradient: of the mean loss with respect to the images, N x C x H x W, not checked for NaN.
        logits: of the last pass, N x K.
    """

    losses: Tensor
    logit_margins: Tensor
    fooled: Tensor | None
    gradient: Tensor
    logits: Tensor


def value_and_grad(model: Classifier, images: Tensor, labels: Tensor, loss: Loss, eot: int) -> Evaluation:
    """Expectation over transformation (EOT, arXiv:1707.07397): means of losses and gradients over several passes.

    The passes are ``eot`` passes of the model. If the model is an `Oracle` with known members, there is one pass of
    each member instead, weighted by its probability, and the mean is the exact expectation.
    """
    point = images.detach().requires_grad_(True)
    gradient = torch.zeros_like(images)
    losses = logit_margins = images.new_zeros(len(images), dtype=torch.float32)
    weighted_margins = []
    for weight, classifier in _weighted_passes(model, eot):
        with torch.enable_grad():
            logits = classifier(point)
            loss_values = loss(logits, labels)
            total = loss_values.sum()
        gradient = gradient + weight * torch.autograd.grad(total, point)[0]
        margins = logit_margin(logits.detach(), labels)
        losses = losses + weight * loss_values.detach()
        logit_margins = logit_margins + weight * margins
        weighted_margins.append((weight, margins))
    return Evaluation(
        losses=losses,
        logit_margins=logit_margins,
        fooled=_fooled_share(model, weighted_margins),
        gradient=gradient,
        logits=logits.detach(),
    )


def mean_logit_margins(model: Classifier, images: Tensor, labels: Tensor, eot: int) -> Tensor:
    """Mean logit margin over the passes of `value_and_grad`, N; no gradient is taken."""
    return logit_margins_and_fooled(model, images, labels, eot)[0]


def logit_margins_and_fooled(
    model: Classifier, images: Tensor, labels: Tensor, eot: int
) -> tuple[Tensor, Tensor | None]:
    """Mean logit margin and share of fooled members, as in `Evaluation`; no gradient is taken."""
    with torch.no_grad():
        weighted_margins = [
            (weight, logit_margin(classifier(images), labels)) for weight, classifier in _weighted_passes(model, eot)
        ]
    mean = torch.stack([weight * margins for weight, margins in weighted_margins]).sum(0)
    return mean, _fooled_share(model, weighted_margins)


def _weighted_passes(model: Classifier, eot: int) -> list[tuple[float, Classifier]]:
    if isinstance(model, Oracle) and model.members:
        return list(zip(model.weights, model.members, strict=True))
    return [(1 / eot, model)] * eot


def _fooled_share(model: Classifier, weighted_margins: list[tuple[float, Tensor]]) -> Tensor | None:
    """Only for known members: with a few random passes, a lucky share would beat an iterate with a good mean."""
    if not (isinstance(model, Oracle) and model.members):
        return None
    # Sums over the members that are not fooled, so that a share of one is exactly one.
    return 1 - torch.stack([weight * (~(margins > 0)).float() for weight, margins in weighted_margins]).sum(0)


def finite_value_and_grad(model: Classifier, images: Tensor, labels: Tensor, loss: Loss, eot: int) -> Evaluation:
    """`value_and_grad` with zeros in place of NaN: those pixels stay where they are, and NaN does not spread."""
    evaluation = value_and_grad(model, images, labels, loss, eot)
    return replace(evaluation, gradient=evaluation.gradient.nan_to_num(nan=0.0))


def should_sync(images: Tensor, steps_since: int) -> bool:
    """Whether to find out now which images are done: always on a CPU, but a GPU would have to wait for the answer.

    Args:
        images: a tensor on the device of the attack.
        steps_since: steps since the last synchronisation, or 0 if it is time for one.
    """
    return images.device.type == "cpu" or steps_since == 0
