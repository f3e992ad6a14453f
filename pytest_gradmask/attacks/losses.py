"""Per-image losses that attacks maximise. Each takes logits (N x K) and labels (N) and returns N values.

Losses are computed in float32, whatever the model computes in. They are not averaged over the batch, because images
must not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]

_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the label."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's: above 0 exactly where the image is misclassified.

    This is the loss of Carlini and Wagner (arXiv:1608.04644) without its lower limit. Its gradient does not vanish
    where a softmax saturates.
    """
    logits = logits.float()
    label = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - label


def unsaturated_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy, but the logit margin where the cross-entropy is rounded to zero and no longer leads anywhere.

    Such a margin is below -16, and so smaller than any cross-entropy.
    """
    losses = cross_entropy(logits, labels)
    return torch.where(losses > 0, losses, logit_margin(logits, labels))


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, arXiv:2003.01690, eq. 6).

    The logit margin divided by the difference of the largest and the third largest logit. It is invariant to shift
    and scale of the logits and needs three classes. By definition its gradient is exactly zero where the label ranks
    third, on any model.
    """
    logits = logits.float()
    top = logits.topk(3, dim=1).values
    return logit_margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)
