"""Expectation over transformation (EOT, Athalye et al. 2018, arXiv:1707.07397) for attacks that do not support it.

PGD, APGD and zero-order PGD average losses and gradients themselves, with ``eot=``. For any other attack, `averaged`
replaces a randomized defense by its mean over several forward passes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.protocol import AttackFunction, on_wrapped
from pytest_gradmask.errors import InputError


class Averaged(nn.Module):
    """The logarithm of a randomized model's mean probabilities over several forward passes.

    An attack that needs one forward pass to evaluate an image then uses the mean over several. This holds for the
    steps and the success of FAB, and for the updates that Square accepts.

    Args:
        model: maps images to logits.
        passes: forward passes of the model for each of its own, at least 1. Their graphs are in memory together.
    """

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([self.model(images) for _ in range(self.passes)])
        return logits.log_softmax(2).logsumexp(0) - torch.tensor(float(self.passes)).log()


def averaged(model: nn.Module, passes: int) -> nn.Module:
    """The mean of a model over ``passes`` forward passes; the model itself if that is one.

    Raises:
        InputError: ``passes`` is not at least 1.
    """
    if passes < 1:
        raise InputError(f"passes={passes!r}: must be a whole number of at least 1")
    return model if passes == 1 else Averaged(model, passes)


def on_average(attack: AttackFunction, passes: int) -> AttackFunction:
    """The attack on the mean of a randomized model over ``passes`` forward passes; see `averaged`."""
    return attack if passes == 1 else on_wrapped(attack, partial(averaged, passes=passes))
