"""Defenses with one symptom each, and the path that probes look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_gradmask.probes.trace import PGDTrace, trace_pgd
from pytest_gradmask.threat import ThreatModel
from tests.toys import IMAGES, linear, oracle, predictions, seeded

#: Images on the grid of 8 bits, as images are; a step off it can be told from them.
ON_GRID = (IMAGES * 255).round() / 255
#: At this radius hardly an image of the linear toy breaks.
SMALL = ThreatModel(0.002)

Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, rule: Rule) -> torch.Tensor:
        ctx.save_for_backward(images)
        ctx.rule = rule
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (images,) = ctx.saved_tensors
        return ctx.rule(images, gradients[0]), None


class Backward(nn.Module):
    """The identity, whose gradient is what a rule makes of the images and of the true gradient."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _Backward.apply(images, self.rule)  # type: ignore[no-any-return]


def off_grid(images: torch.Tensor) -> torch.Tensor:
    """Whether each image is off the grid of 8 bits; N x 1 x 1 x 1."""
    scaled = images * 255
    return ((scaled - scaled.round()).abs() > 1e-2).flatten(1).any(1).view(-1, 1, 1, 1)


class Scale(nn.Module):
    """Multiplies, and adds."""

    def __init__(self, factor: float, offset: float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images + self.offset


class Ripple(nn.Module):
    """``x + gain / frequency * sin(frequency * x)``: nearly the identity, with a gradient from 1 - gain to 1 + gain."""

    def __init__(self, gain: float = 20.0, frequency: float = 2000.0) -> None:
        super().__init__()
        self.gain, self.frequency = gain, frequency

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.gain / self.frequency * torch.sin(self.frequency * images)


def front(rule: Rule, backbone: nn.Module | None = None) -> nn.Sequential:
    """A classifier behind an identity with this gradient."""
    return nn.Sequential(Backward(rule), backbone or linear()).eval()


def active(model: nn.Module, threat: ThreatModel = SMALL, images: torch.Tensor = ON_GRID, **arguments: Any) -> PGDTrace:
    """The path over a model that is right about every image."""
    return trace_pgd(oracle(model), images, predictions(model, images), threat, seeded(), **arguments)
