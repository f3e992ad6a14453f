"""When attacks that need many queries give an image up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: ``give_up(before, best, done)``: for each image, whether to spend no more queries on it; bool, N. ``before`` is the
#: logit margin of the clean image and ``best`` the largest so far, both N. ``done`` is the share of the queries spent.
GiveUp = Callable[[Tensor, Tensor, float], Tensor]
#: Share of the queries before which no image is hopeless.
_FROM = 0.25


def never(_before: Tensor, best: Tensor, _done: float) -> Tensor:
    """Give no image up."""
    return torch.zeros_like(best, dtype=torch.bool)


def hopeless(before: Tensor, best: Tensor, done: float) -> Tensor:
    """Give an image up, from a quarter of the queries on, if the rest would have to do more than the queries so far.

    That is where the share of the clean margin that is gone is below the share of the queries that are spent. Margins
    grow ever more slowly under Square, whose changes become smaller, and under PGD, which reaches the edge of the ball.
    What this loses on known defenses, and what it saves, is measured by ``python -m benchmarks queries``.
    """
    # False for NaN: nothing is known then.
    return (1 - best / before < done) & (done >= _FROM)
