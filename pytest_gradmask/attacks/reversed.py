"""An attack against the gradient: on the way to a misclassification a loss may fall, and rise only at the end.

A defense can shape its logits so: the lead of the label grows while an image comes nearer to another class, up to a
peak close to the border, and every attack that climbs a loss is led away from there. Its derivative is right, and its
decisions are those of the classifier. Chen et al. (2022, arXiv:2205.12134) mislead score-based attacks in this way.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_gradmask.attacks.losses import cross_entropy
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.attacks.protocol import Classifier
from pytest_gradmask.threat import PerturbationSet

#: Of a step, in units of eps: from anywhere in the ball to its border, over the peak. On a VGG and a linear classifier
#: with five such peaks, smaller steps broke fewer images.
_STEP = 2.0


def falling(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the cross-entropy."""
    return -cross_entropy(logits, labels)


def pgd_reversed(
    model: Classifier, images: Tensor, labels: Tensor, *, threat: PerturbationSet, **arguments: Any
) -> Tensor:
    """PGD that minimises the cross-entropy, in large steps. Arguments, result and errors are those of `pgd`.

    The result is the iterate nearest to a misclassification. On a defense whose loss leads there, it breaks nothing.
    """
    return pgd(model, images, labels, threat=threat, step_size=_STEP * threat.eps, loss=falling, **arguments)
