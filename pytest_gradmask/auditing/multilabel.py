"""Defenses with several labels an image, as classifiers of one label: the set of all labels that are on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.arguments import check_tensor
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.adapters import Adapted, JointLabels
from pytest_gradmask.verdict.results import Finding

#: Most labels: each more doubles the number of joint classes.
_MOST = 8


def with_joint_labels(defense: Defense, labels: Tensor) -> tuple[Defense, Tensor, list[Finding]]:
    """A defense of several labels as one of a single label, which is correct where all of them are.

    The joint class of K labels is one of the 2 ** K sets of labels. Its logit is the sum of the scores of the labels in
    the set. So the largest logit is that of the labels with a score above 0, the cross-entropy of a joint class is the
    sum of the binary cross-entropies of all labels. Its logit margin is that of the label which is nearest to flipping,
    as long as all labels are right.

    Args:
        defense: any. Without ``outputs="multilabel"`` nothing changes.
        labels: for each image and label, 1 if it is on and 0 if not; N x K.

    Returns:
        The defense with joint classes, the joint class of each image (int64, N), and a finding that says so.

    Raises:
        InputError: labels are of another form, or there are more than 8 of them.
    """
    if defense.outputs != "multilabel":
        return defense, labels, []
    check_tensor("labels", labels)
    shape = tuple(labels.shape)
    if labels.ndim != 2 or shape[1] < 2 or not ((labels == 0) | (labels == 1)).all():
        raise InputError(f'labels: {labels.dtype} {shape}; with outputs="multilabel" they must be N x K, of 0 and 1')
    count = shape[1]
    if count > _MOST:
        raise InputError(
            f"labels: {count} labels an image; at most {_MOST} can be audited together. Audit some of them: "
            "give a module that returns their scores alone"
        )

    def joint(model: nn.Module) -> nn.Module:
        return Adapted(model, JointLabels(count))

    attacks = [
        attack if attack.through is None else replace(attack, through=joint(attack.through))
        for attack in defense.own_attacks()
    ]
    adapted = replace(
        defense, model=joint(defense.model), members=[joint(each) for each in defense.members],
        sources=[joint(each) for each in defense.sources], attacks=attacks, outputs="logits",
    )  # fmt: skip
    classes = (labels.long() << torch.arange(count, device=labels.device)).sum(1)
    words = f"an image has {count} labels; it counts as correct if all are, and attacks see {2**count} joint classes"
    return adapted, classes, [Finding("adapted-model", words)]
