"""Attacks on a randomized ensemble whose members are known: the adversary asks all, not the one that answers.

PGD and APGD on the members' expected loss need nothing of their own: given an `Oracle` that knows the members, they
take the mean over them (`gradient.value_and_grad`).
"""

from __future__ import annotations

import torch

from pytest_gradmask.attacks.evaluate import Best, judge
from pytest_gradmask.attacks.losses import Loss, cross_entropy, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.threat import ThreatModel

#: A member whose margin is this large, in standard deviations of its logits, is fooled with room to spare.
_FOOLED = 0.5


def joint_margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The margin in standard deviations of the logits, up to where a member is fooled with room to spare.

    Its mean over members is what a joint attack maximises: members that are fooled no longer pull, so that the
    perturbation is spent on those that are not. In standard deviations, because members' logits differ in scale.
    N x K and N to N.
    """
    scale = logits.detach().float().std(1).clamp_min(1e-12)
    return (logit_margin(logits, labels) / scale).clamp_max(_FOOLED)


def member_by_member(
    model: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    loss: Loss = cross_entropy,
) -> torch.Tensor:
    """APGD on each member alone; for each image, what transfers best to the ensemble as a whole.

    Args:
        model: knows the members.
        steps: gradient steps on each member.

    The other arguments are those of `pgd`.

    Returns:
        For each image the perturbation that fools most members by weight; of equals, the one with the largest mean
        margin.
    """
    best = Best.start(images)
    for member in model.members:
        found = apgd(
            member, images, labels, threat=threat, steps=steps, generator=generator, loss=loss, stop_early=False
        )
        best.update(found, *judge(model, found, labels, eot=1))
    return best.images
