"""Per-image losses that attacks maximise. Each takes logits (N x K) and labels (N) and returns N values.

Losses are computed in float32 whatever the model computes in, and never summed over the batch before an
image's own value was used: images must not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_TINY = 1e-12


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the label."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def logit_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Largest other logit minus the label's: above 0 exactly where the image is misclassified.

    The loss of Carlini and Wagner (2017) without its floor. Its gradient does not vanish where a softmax saturates.
    """
    logits = logits.float()
    label = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - label


def dlr(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): the margin over the spread of the top three logits.

    Invariant to shift and scale of the logits. Needs three classes. Its gradient is exactly zero where the
    label ranks third, a trap of the definition and not of the defense.
    """
    logits = logits.float()
    top = logits.topk(3, dim=1).values
    return logit_margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)
