"""RayS: a decision-based attack, for defenses whose scores do not help an attack."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from pytest_gradmask.threat import ThreatModel

#: A binary search ends at this share of eps. The paper's is 0.001 in the L2 norm, whatever eps is.
_TOLERANCE = 0.03


@dataclass(kw_only=True, slots=True)
class _Rays:
    """The search for each active image; each tensor has one row for each.

    Attributes:
        index: of the image in the batch.
        images: the clean images.
        labels: their labels.
        signs: direction of the best ray so far, 1 or -1, N x D.
        radius: distance to the decision boundary along it; infinite until a ray meets it.
        trial: direction of the ray that is examined.
        low, high: where the boundary lies along it.
        searching: whether a binary search for the boundary is going on, bool.
        level: the ray has 2 ** level blocks to flip.
        block: the next one to flip.
    """

    index: Tensor
    images: Tensor
    labels: Tensor
    signs: Tensor
    radius: Tensor
    trial: Tensor
    low: Tensor
    high: Tensor
    searching: Tensor
    level: Tensor
    block: Tensor

    def select(self, mask: Tensor) -> _Rays:
        """The search of some of the images; ``mask`` is bool, one value for each."""
        return _Rays(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def rays(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,  # noqa: ARG001 (every attack takes one)
) -> Tensor:
    """RayS (Chen and Gu 2020, arXiv:2006.12792): search for the ray along which the decision boundary is nearest.

    It needs no gradient and no score, only the predicted class. A ray leaves the image along a vector of signs. Of the
    best ray so far, the signs of one block of pixels after another are flipped: all of them, each half, each quarter,
    and so on (Algorithm 3). One query at the distance of the best ray tells whether the new ray is better. If it is, a
    binary search finds its distance (Algorithm 2). An image is left out once its boundary is inside of the ball.

    The paper is about the Linf norm. For L2, rays are the same: all pixels change by the same amount, which is not the
    direction of the nearest adversarial example, and the result is weaker. Points of a ray are clipped to the bounds.

    Args:
        steps: queries for each image; the paper uses 10,000 on CIFAR-10.
        generator: not used, there is nothing random.

    The other arguments are those of `pgd`.

    Returns:
        For each image the misclassified point on the best ray, projected into the ball. It is an adversarial example if
        that point was inside the ball, and probably not otherwise. Images without a misclassified point are returned
        unchanged.
    """
    count, size = len(images), images[0].numel()
    low, high = threat.bounds
    # Lengths of rays are changes of one pixel. Along a whole diagonal of the bounds, all pixels are clipped.
    pixel_eps = threat.pixel_eps(size)
    x_adv = images.clone()
    state = _Rays(
        index=torch.arange(count, device=images.device),
        images=images,
        labels=labels,
        signs=images.new_ones(count, size),
        radius=images.new_full((count,), torch.inf),
        trial=images.new_ones(count, size),
        low=images.new_zeros(count),
        high=images.new_full((count,), high - low),
        searching=torch.zeros_like(labels, dtype=torch.bool),
        level=torch.zeros_like(labels),
        block=torch.zeros_like(labels),
    )
    with torch.no_grad():
        for _ in range(steps):
            if len(state.index) == 0:
                break
            length = torch.where(state.searching, (state.low + state.high) / 2, state.high)
            points = (state.images + (length[:, None] * state.trial).view_as(state.images)).clamp(low, high)
            wrong = model(points).argmax(1) != state.labels
            x_adv[state.index[wrong]] = points[wrong]
            _narrow(state, wrong, length, tolerance=_TOLERANCE * pixel_eps)
            state = state.select(~(state.radius <= pixel_eps))
    return threat.project(x_adv, images)


def _narrow(state: _Rays, wrong: Tensor, length: Tensor, *, tolerance: float) -> None:
    """Take the answers of one query: misclassified or not, at this length of each ray."""
    better = wrong & ~state.searching
    state.searching = state.searching | better
    state.signs = torch.where(better[:, None], state.trial, state.signs)
    state.low = torch.where(better, 0, torch.where(state.searching & ~wrong, length, state.low))
    state.high = torch.where(wrong, length, state.high)
    state.radius = torch.where(state.searching, state.high, state.radius)
    state.searching = state.searching & (state.high - state.low > tolerance)
    _next_block(state, ~state.searching)


def _next_block(state: _Rays, mask: Tensor) -> None:
    """Where ``mask`` is true, the next ray to examine is the best one with one block of signs flipped."""
    size = state.signs.shape[1]
    blocks = 2**state.level
    pixel = torch.arange(size, device=state.signs.device)
    # The blocks of a level differ by at most one pixel in size.
    inside = (pixel * blocks[:, None]).div(size, rounding_mode="floor") == state.block[:, None]
    flipped = torch.where(inside, -state.signs, state.signs)
    state.trial = torch.where(mask[:, None], flipped, state.trial)
    last = state.block + 1 >= blocks
    finest = blocks >= size
    state.block = torch.where(mask, torch.where(last, 0, state.block + 1), state.block)
    state.level = torch.where(mask & last & ~finest, state.level + 1, state.level)
