"""Do two sets of answers to the same points differ by more than rounding?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle

#: Largest difference of logits, relative to the size of all, that counts as rounding; as in the preflight. On 12
#: trained models, with front ends of 65 layers too, all ways of asking but that off the grid give at most 3e-7.
_SAME = 0.02
#: The same in units of the precision of the defense, for half precision.
_ROUNDINGS = 16
#: Points that must differ. A front end that rounds may round one point otherwise.
_FEWEST = 2


def rounding(oracle: Oracle) -> float:
    """Largest difference of logits, relative to their size, that counts as rounding."""
    return max(_SAME, _ROUNDINGS * torch.finfo(oracle.dtype).eps)


def change(one: Tensor, other: Tensor) -> Tensor:
    """Largest difference of the logits of each point; N. Equal infinities, and NaN in both, are no difference."""
    same = (one == other) | (one.isnan() & other.isnan())
    return (one - other).abs().masked_fill(same, 0).nan_to_num(nan=float("inf")).amax(1)


def differing_points(one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """Whether the logits of each point differ by more than rounding; bool, N."""
    return change(one, other) > tolerance * size(other)


def size(logits: Tensor) -> Tensor:
    """Largest finite logit, in absolute value; a scalar."""
    return logits.nan_to_num(0, 0, 0).abs().amax().clamp_min(1e-12)


def alike(some: Sequence[Tensor], others: Sequence[Tensor], tolerance: float) -> bool:
    """Whether answers agree, pair by pair."""
    pairs = zip(some, others, strict=True)
    return not any(bool(enough(differing_points(one, other, tolerance))) for one, other in pairs)


def enough(differing: Tensor) -> bool:
    """Whether so many points differ that it is not rounding."""
    return int(differing.sum()) >= min(_FEWEST, len(differing))


def described(one: Tensor, other: Tensor, differing: Tensor) -> str:
    """The difference in words."""
    largest = (change(one, other) / size(other)).max().item()
    decided = int(((one.argmax(1) != other.argmax(1)) & differing).sum())
    return (
        f"logits differ by up to {largest:.2g} of their size at {int(differing.sum())} of {len(differing)} points, "
        f"the decision at {decided}"
    )
