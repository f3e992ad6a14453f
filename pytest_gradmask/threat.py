"""The threat model: which perturbations an attacker may use."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from pytest_gradmask.checks import is_a, shown
from pytest_gradmask.errors import InputError

if TYPE_CHECKING:  # the plugin builds threat models before torch is needed
    import torch
    from torch import Tensor

Norm = Literal["Linf", "L2"]
#: What an attack sees of the defense: its gradient; the gradient of another model (surrogate); its gradient with some
#: operations bypassed (BPDA); its outputs alone (scores); or its decisions alone (labels).
Access = Literal["gradient", "surrogate", "bypass", "scores", "labels"]

#: Tolerance for rounding when a returned image is checked against the ball and the bounds, relative to their size.
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """All images within ``eps`` of the original in ``norm`` and within ``bounds``.

    Attributes:
        eps: radius in input units, above 0. For images in [0, 1] the usual CIFAR-10 radius is 8/255 (Linf).
        norm: ``"Linf"`` or ``"L2"``.
        bounds: smallest and largest value of a pixel.

    Raises:
        InputError: a value is outside of these ranges.
    """

    eps: float = 8 / 255
    norm: Norm = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if is_a(self.eps, bool) or not is_a(self.eps, int, float):
            raise InputError(f"eps={shown(self.eps)}: must be a number, such as 8/255")
        if not 0 < self.eps <= sys.float_info.max:
            raise InputError(f"eps={shown(self.eps)}: must be above 0 and finite, such as 8/255")
        if not is_a(self.norm, str) or self.norm not in get_args(Norm):
            raise InputError(f"norm={shown(self.norm)}: must be one of {', '.join(get_args(Norm))}")
        try:
            low, high = (float(1.0 * bound) for bound in self.bounds)  # the multiplication refuses a string of digits
        except Exception as error:  # the objects are not ours
            raise InputError(f"bounds={shown(self.bounds)}: must be two numbers, such as (0, 1)") from error
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"bounds={shown(self.bounds)}: the first must be below the second, such as (0, 1)")
        object.__setattr__(self, "bounds", (low, high))
        width = (high - low) if self.norm == "Linf" else math.inf
        if self.eps > width + self.tolerance:
            raise InputError(
                f"eps={shown(self.eps)}: larger than the bounds {self.bounds} are wide; "
                f"eps is in input units: did you mean {self.eps / 255 * (high - low):.4g}?"
            )

    @property
    def tolerance(self) -> float:
        """Tolerance for rounding, in input units: 1e-5 for images in [0, 1]."""
        return _TOLERANCE * max(abs(self.bounds[0]), abs(self.bounds[1]), self.eps)

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Project ``perturbed`` onto the ball around ``images``, then clip to the bounds."""
        delta = perturbed - images
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / _norm2(delta).clamp_min(1e-12)).clamp_max(1.0)
        return (images + delta).clamp(*self.bounds)

    def step(self, gradient: Tensor) -> Tensor:
        """The steepest ascent direction of unit norm; zero if the gradient is zero."""
        if self.norm == "Linf":
            return gradient.sign()
        # Divide by the largest entry first: the squares of very small or large gradients leave the range of a float.
        scaled = gradient / _largest(gradient).clamp_min(1e-38)
        return scaled / _norm2(scaled).clamp_min(1e-38)

    def random_start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random image in the ball: uniform for Linf; uniform direction and radius for L2."""
        if self.norm == "Linf":
            noise = _rand(images, generator) * (2 * self.eps) - self.eps
        else:
            direction = _randn(images, generator)
            radius = self.eps * _rand(images[:, :1, :1, :1], generator)
            noise = direction / _norm2(direction).clamp_min(1e-12) * radius
        return self.project(images + noise, images)

    def distance(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Size of each image's perturbation in ``norm``, shape N."""
        delta = (perturbed - images).flatten(1)
        return delta.abs().amax(1) if self.norm == "Linf" else delta.norm(dim=1)

    def contains(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Whether each image is finite, in the ball and in the bounds, up to `tolerance`; bool, shape N."""
        low, high = self.bounds
        flat = perturbed.flatten(1)
        finite = flat.isfinite().all(1)
        bounded = (flat >= low - self.tolerance).all(1) & (flat <= high + self.tolerance).all(1)
        return finite & bounded & (self.distance(perturbed, images) <= self.eps + self.tolerance)


def _norm2(delta: Tensor) -> Tensor:
    norms: Tensor = delta.flatten(1).norm(dim=1)
    return norms.view(-1, *[1] * (delta.ndim - 1))


def _largest(delta: Tensor) -> Tensor:
    return delta.flatten(1).abs().amax(1).view(-1, *[1] * (delta.ndim - 1))


# Random numbers are drawn on the generator's device (the CPU) and moved, so that a seed means the same on every device.
def _rand(like: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    return torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _randn(like: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
