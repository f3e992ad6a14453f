"""The call signature that all attacks share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_gradmask.threat import PerturbationSet

#: From images (N x C x H x W) to logits (N x K): a module, or one member of an ensemble.
Classifier = Callable[[Tensor], Tensor]


class AttackFunction(Protocol):
    """An untargeted evasion attack: ``attack(model, images, labels, *, threat, generator) -> images``.

    The number of steps and other settings of an attack are bound beforehand, with `functools.partial`.
    """

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        /,
        *,
        threat: PerturbationSet,
        generator: torch.Generator,
    ) -> Tensor:
        """Perturb each image so that the model misclassifies it.

        Args:
            model: maps images to logits, N x K. In an audit it is an `Oracle`, which counts the passes.
            images: float32, N x C x H x W, inside the bounds of ``threat``.
            labels: int64, N.
            threat: the norm ball and the bounds of the pixels. An image outside of them does not count as broken.
            generator: source of all random numbers of the attack; a CPU generator.

        Returns:
            One perturbed image for each image, in the same order and of the same shape. Where the attack failed,
            any image inside the ball.
        """


def on_wrapped(attack: AttackFunction, wrap: Callable[[nn.Module], nn.Module]) -> AttackFunction:
    """The attack on what ``wrap`` makes of the model."""
    return partial(_on_wrapped, attack, wrap)


def _on_wrapped(
    attack: AttackFunction, wrap: Callable[[nn.Module], nn.Module], model: nn.Module, *batch: Tensor, **arguments: Any
) -> Tensor:
    return attack(wrap(model), *batch, **arguments)
