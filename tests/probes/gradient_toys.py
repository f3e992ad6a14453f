"""Modules whose gradient is not the derivative of their output, and the probe that is to say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.probes.derivative import wrong_gradient
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import ON_GRID, Scale
from tests.toys import (
    convolutional,
    oracle,
    seeded,
)

THREAT = ThreatModel(8 / 255)
DATA = load_dataset("embedded")


class AddVector(torch.autograd.Function):
    """The identity, whose backward pass adds a fixed vector, 1.5 times as long as the gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        vector = torch.randn(gradient.shape[1:], generator=seeded(3)).to(gradient)
        norms = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
        return gradient + 1.5 * norms * (vector / vector.norm())  # type: ignore[no-any-return]


class OneDirection(torch.autograd.Function):
    """The identity in the newer form with a context set up apart; its gradient is rolled."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].roll(1, -1)


class Apply(nn.Module):
    """A module that calls an autograd function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class TensorHook(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs * 1
        if inputs.requires_grad:
            inputs.register_hook(lambda gradient: gradient.flip(-1))
        return inputs


class DetachedBranch(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 3 * inputs.detach().flip(-1)


class NoGradBranch(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            branch = 3 * inputs.flip(-1)
        return inputs + branch


class InPlaceData(nn.Module):
    """Changes its output behind the back of autograd."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs * 1
        outputs.data.add_(3 * inputs.detach().flip(-1))
        return outputs


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return torch.round(inputs * 16) / 16

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def flip_gradient(_: nn.Module, inputs: Any, __: Any) -> tuple[Tensor]:
    return (inputs[0].flip(-1),)


def add_hook() -> nn.Module:
    module = Scale(1.0)
    module.register_full_backward_hook(flip_gradient)
    return module


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "function": (lambda: Apply(AddVector.apply), "autograd.Function AddVector"),
    "function-with-setup": (lambda: Apply(OneDirection.apply), "autograd.Function OneDirection"),
    "backward-hook": (add_hook, "hook flip_gradient"),
    "tensor-hook": (TensorHook, "TensorHook.forward, which sets the hook TensorHook.forward.<locals>.<lambda>"),
    "detached-branch": (DetachedBranch, "DetachedBranch.forward"),
    "no-grad-branch": (NoGradBranch, "NoGradBranch.forward"),
    "in-place": (InPlaceData, "InPlaceData.forward"),
}


def check(model: nn.Module, images: Tensor = ON_GRID, seed: int = 0, **arguments: Any) -> list[Finding]:
    return wrong_gradient(oracle(model, **arguments), images, THREAT, seeded(seed))


def in_the_middle(module: nn.Module) -> nn.Sequential:
    """A small network with this module behind its first stage."""
    layers = list(convolutional())
    return nn.Sequential(*layers[:2], module, *layers[2:]).eval()


class CannotBeCopied(nn.Module):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("one of a kind")

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 1


class InNumpy(torch.autograd.Function):
    """The identity in float32, by code that is not torch's."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return torch.from_numpy(inputs.numpy().astype("float32"))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
