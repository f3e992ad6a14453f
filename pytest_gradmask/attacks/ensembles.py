"""Attacks on a randomized ensemble whose members are known: the attack queries every member, not a random one.

PGD and APGD can attack such an ensemble without any change: given an `Oracle` that knows the members, they follow
the gradient of the expected loss (`evaluate.value_and_grad`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_gradmask.attacks.evaluate import BestIterates, logit_margins_and_fooled
from pytest_gradmask.attacks.losses import Loss, cross_entropy, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.threat import PerturbationSet

#: Upper limit of the logit margin in `joint_margins`, in standard deviations of the logits. At this value a member is
#: fooled by a clear margin.
_MARGIN_LIMIT = 0.5


def joint_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit margin in standard deviations of the logits, at most 0.5.

    A joint attack maximises the mean of this loss over the members. Because of the upper limit, members that are
    fooled already have no gradient, and the perturbation is spent on the others. The division by the standard
    deviation makes members comparable whose logits differ in scale.

    Args:
        logits: N x K.
        labels: N.

    Returns:
        N values.
    """
    scale = logits.detach().float().std(1).clamp_min(1e-12)
    return (logit_margin(logits, labels) / scale).clamp_max(_MARGIN_LIMIT)


def member_by_member(
    model: Oracle,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    steps: int,
    generator: torch.Generator,
    loss: Loss = cross_entropy,
) -> Tensor:
    """APGD on each member alone; for each image the result that transfers best to the whole ensemble.

    Args:
        model: an oracle that knows the members.
        steps: gradient steps on each member.

    The other arguments are those of `pgd`.

    Returns:
        For each image the perturbation that fools the largest share of the members, by weight. If several fool the
        same share, it is the one with the largest mean logit margin.
    """
    best = BestIterates.start(images)
    for member in model.members:
        x_adv = apgd(
            member, images, labels, threat=threat, steps=steps, generator=generator, loss=loss, stop_early=False
        )
        best.update(x_adv, *logit_margins_and_fooled(model, x_adv, labels, eot=1))
    return best.adv_best
