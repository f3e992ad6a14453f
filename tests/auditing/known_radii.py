"""Images of which a linear classifier's robustness is known exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toys import draw


def shares_of_radius(weights: Tensor, eps: float, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, their classes, and the share of the radius that suffices to misclassify each.

    Args:
        weights: of the classifier, K x 3072, of images less 0.5.
        eps: radius in Linf.
        number: of images, N x 3 x 32 x 32.
    """
    images = draw(number, 3, 32, 32) * 0.9 + 0.05
    scores = (images.flatten(1) - 0.5) @ weights.T
    labels, rows = scores.argmax(1), torch.arange(len(images))
    sizes = torch.stack([(weights[labels] - weight).abs().sum(1) for weight in weights], 1)
    share = (scores[rows, labels][:, None] - scores) / (eps * sizes + 1e-9)
    return images, labels, share.scatter(1, labels[:, None], float("inf")).amin(1)
