"""Defenses with one symptom each, and their PGD traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.probes.trace import PGDTrace, trace_pgd
from pytest_gradmask.threat import ThreatModel
from tests.toys import IMAGES, linear, oracle, predictions, seeded

#: Images with 8-bit values. A perturbed image has other values.
ON_GRID = (IMAGES * 255).round() / 255
#: At this radius hardly any image of the linear toy is broken.
SMALL = ThreatModel(0.002)

Rule = Callable[[Tensor, Tensor], Tensor]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, rule: Rule) -> Tensor:
        ctx.save_for_backward(images)
        ctx.rule = rule
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        return ctx.rule(images, gradients[0]), None


class Backward(nn.Module):
    """The identity, with a gradient that a rule computes from the images and the true gradient."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, images: Tensor) -> Tensor:
        return _Backward.apply(images, self.rule)  # type: ignore[no-any-return]


def off_grid(images: Tensor) -> Tensor:
    """Whether each image has other values than those of 8 bits; N x 1 x 1 x 1."""
    scaled = images * 255
    return ((scaled - scaled.round()).abs() > 1e-2).flatten(1).any(1).view(-1, 1, 1, 1)


class Scale(nn.Module):
    """Multiplies by a factor, and adds an offset."""

    def __init__(self, factor: float, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images + self.offset


class Ripple(nn.Module):
    """``x + gain / frequency * sin(frequency * x)``: nearly the identity, with a gradient from 1 - gain to 1 + gain."""

    def __init__(self, gain: float = 20.0, frequency: float = 2000.0) -> None:
        super().__init__()
        self.gain, self.frequency = gain, frequency

    def forward(self, images: Tensor) -> Tensor:
        return images + self.gain / self.frequency * torch.sin(self.frequency * images)


def front(rule: Rule, backbone: nn.Module | None = None) -> nn.Sequential:
    """A classifier behind an identity with this gradient."""
    return nn.Sequential(Backward(rule), backbone or linear()).eval()


def traced(model: nn.Module, threat: ThreatModel = SMALL, images: Tensor = ON_GRID, **arguments: Any) -> PGDTrace:
    """The PGD trace of a model, with its predictions as labels."""
    return trace_pgd(oracle(model), images, predictions(model, images), threat, seeded(), **arguments)
