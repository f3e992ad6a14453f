"""Expectation over transformation (EOT) for attacks that know nothing of it.

PGD, APGD and zero-order PGD average losses and gradients themselves: ``eot=``. For any other attack, `averaged` makes a
randomized defense look like its own average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_gradmask.errors import InputError


class Averaged(nn.Module):
    """The logarithm of a randomized model's mean probabilities over some passes.

    An attack that judges a point by one forward judges it by as many as these: FAB's steps and success, and the
    updates that Square accepts, are then those of the mean.

    Args:
        model: maps images to logits.
        passes: forwards for each of its own, at least 1; their graphs are kept together.
    """

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([self.model(images) for _ in range(self.passes)])
        return logits.log_softmax(2).logsumexp(0) - torch.tensor(float(self.passes)).log()


def averaged(model: nn.Module, passes: int) -> nn.Module:
    """A model that answers by the mean of ``passes`` forwards; the model itself for one (Athalye et al. 2018).

    Raises:
        InputError: ``passes`` is not at least 1.
    """
    if passes < 1:
        raise InputError(f"passes={passes!r}: must be a whole number of at least 1")
    return model if passes == 1 else Averaged(model, passes)


def on_average(attack: Callable[..., torch.Tensor], passes: int) -> Callable[..., torch.Tensor]:
    """The attack on what a randomized model answers on `averaged` over ``passes`` forwards."""
    if passes == 1:
        return attack

    def run(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return attack(averaged(model, passes), images, labels, **arguments)

    return run
