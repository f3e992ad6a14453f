"""The threat model: which perturbations an attacker may use."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from pytest_gradmask.checks import is_a, shown
from pytest_gradmask.errors import InputError
from pytest_gradmask.printable import one_line

if TYPE_CHECKING:  # the plugin builds threat models before torch is needed
    import torch
    from torch import Tensor

Norm = Literal["Linf", "L2", "L1"]
#: What an attack sees of the defense: its gradient; the gradient of another model (surrogate); its gradient with some
#: operations bypassed (BPDA); its outputs alone (scores); or its decisions alone (labels).
Access = Literal["gradient", "surrogate", "bypass", "scores", "labels"]

#: Tolerance for rounding when a returned image is checked against the ball and the bounds, relative to their size.
_TOLERANCE = 1e-5
#: Rounding error of one pixel of a perturbation, as a share of the largest pixel. In L1, all of them add up.
_ROUNDING = 2**-23
#: Share of the pixels that a step in L1 changes (Tramèr and Boneh 2019, arXiv:1904.13000). On an adversarially trained
#: ResNet, 5 % break half as many images, and 20 % a third.
_SPARSITY = 0.01


class PerturbationSet(Protocol):
    """Where attacks may search: any set of images around each image, such as all that differ in a patch.

    A `ThreatModel` is one. For a set of your own, write a class with these attributes and methods; it needs no base
    class. ``images`` are always the clean images, float32, N x C x H x W, inside the bounds. Each image has its own
    set, and the clean image belongs to it.

    Attributes:
        eps: by how much a pixel may change at most, in input units. Attacks take steps of this order.
        bounds: smallest and largest value of a pixel. Images outside of them are in no set.
    """

    @property
    def eps(self) -> float: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        """Points of the sets near ``perturbed``, of the same shape; the nearest ones, if they are easy to find."""

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        """A random point of each set. Random numbers come from ``generator``, which is one of the CPU."""

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:
        """The change, of at most 1 in each pixel, along which a loss with this gradient rises most.

        Attacks multiply it by the size of their step, add it to the point ``at``, and project.
        """

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        """Whether each image is in its set, up to rounding; bool, N. Images for which it is False are not broken."""


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """All images within ``eps`` of the original in ``norm`` and within ``bounds``.

    Attributes:
        eps: radius in input units, above 0. For images in [0, 1] the usual CIFAR-10 radius is 8/255 (Linf).
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: smallest and largest value of a pixel.

    Raises:
        InputError: a value is outside of these ranges.
    """

    eps: float = 8 / 255
    norm: Norm = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if is_a(self.eps, bool) or not is_a(self.eps, int, float):
            raise InputError(f"eps={shown(self.eps)}: must be a number, such as 8/255, and the same for all images")
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
        """Project ``perturbed`` onto the ball around ``images``, then clip to the bounds.

        In L1 it is the nearest point of ball and bounds together (Croce and Hein 2021, arXiv:2103.01208): clipping
        would leave much of the radius unused there.
        """
        delta = perturbed - images
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "L1":
            delta = _project_l1(delta, images, self)
        else:
            delta = delta * (self.eps / _norm2(delta).clamp_min(1e-12)).clamp_max(1.0)
        return (images + delta).clamp(*self.bounds)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:
        """The steepest ascent direction of unit norm; zero if the gradient is zero.

        In L1 that would be a single pixel. The step changes the hundredth with the largest gradient instead, of those
        pixels that are not at their bound.

        Args:
            gradient: of a loss; N x ...
            at: where it was taken, of the same shape; None if pixels at their bounds are not to be left out.
        """
        if self.norm == "Linf":
            return gradient.sign()
        if self.norm == "L1":
            import torch

            flat = gradient.flatten(1)
            if at is not None:
                point, (low, high) = at.flatten(1), self.bounds
                flat = flat.masked_fill(((flat > 0) & (point >= high)) | ((flat < 0) & (point <= low)), 0.0)
            kept = flat.abs().topk(max(1, round(_SPARSITY * flat.shape[1])), dim=1).indices
            sparse = torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept).sign())
            return (sparse / sparse.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)
        # Divide by the largest entry first: the squares of very small or large gradients leave the range of a float.
        scaled = gradient / _largest(gradient).clamp_min(1e-38)
        return scaled / _norm2(scaled).clamp_min(1e-38)

    def random_start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random image in the ball: uniform for Linf; uniform direction and radius for L2 and L1."""
        if self.norm == "Linf":
            noise = _rand(images, generator) * (2 * self.eps) - self.eps
        else:
            direction = _randn(images, generator)
            if self.norm == "L1":  # exponential sizes are uniform on the sphere of this norm
                direction = direction.sign() * -(-_rand(images, generator)).log1p()
            radius = per_image(self.eps * _rand(images.flatten(1)[:, :1], generator), images)
            length = per_image(self.distance(direction, 0 * direction), images)
            noise = direction / length.clamp_min(1e-12) * radius
        return self.project(images + noise, images)

    def distance(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Size of each image's perturbation in ``norm``, shape N."""
        delta = (perturbed - images).flatten(1)
        if self.norm == "L1":
            return delta.double().abs().sum(1).to(delta.dtype)
        return delta.abs().amax(1) if self.norm == "Linf" else delta.norm(dim=1)

    def pixel_eps(self, pixels: int) -> float:
        """By how much all of so many pixels may change, if each changes by the same."""
        if self.norm == "Linf":
            return self.eps
        return self.eps / (math.sqrt(pixels) if self.norm == "L2" else pixels)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Dual norm of each gradient, N x ..., N: to first order, the increase of a loss for a step of length 1."""
        flat = gradient.flatten(1)
        if self.norm == "L1":
            return flat.abs().amax(1)
        norms: Tensor = flat.abs().sum(1) if self.norm == "Linf" else flat.norm(dim=1)
        return norms

    def contains(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Whether each image is finite, in the ball and in the bounds, up to `tolerance`; bool, shape N."""
        low, high = self.bounds
        flat = perturbed.flatten(1)
        finite = flat.isfinite().all(1)
        bounded = (flat >= low - self.tolerance).all(1) & (flat <= high + self.tolerance).all(1)
        slack = self.tolerance
        if self.norm == "L1":
            slack += flat.shape[1] * _ROUNDING * max(abs(low), abs(high))
        return finite & bounded & (self.distance(perturbed, images) <= self.eps + slack)


def ball_of(threat: PerturbationSet) -> ThreatModel:
    """The norm ball that probes use: of another set, Linf with eps 8/255 of the bounds' width.

    Probes examine the gradient of a defense, and not what an attacker may do.
    """
    if isinstance(threat, ThreatModel):
        return threat
    low, high = threat.bounds
    return ThreatModel(8 / 255 * (high - low), bounds=(low, high))


def kind_of(threat: PerturbationSet) -> str:
    """The norm of a ball, or the name of another set's class."""
    return threat.norm if isinstance(threat, ThreatModel) else one_line(type(threat).__name__)


def pixel_eps(threat: PerturbationSet, pixels: int) -> float:
    """By how much all of so many pixels may change; of a set that is no ball, its eps."""
    return threat.pixel_eps(pixels) if isinstance(threat, ThreatModel) else threat.eps


def contained(threat: PerturbationSet, perturbed: Tensor, images: Tensor) -> Tensor:
    """Whether each image is finite, in the set and in the bounds; bool, shape N.

    Raises:
        InputError: the set is not a ball, and returns something else.
    """
    inside = threat.contains(perturbed, images)
    if isinstance(threat, ThreatModel):
        return inside
    import torch

    if not is_a(inside, torch.Tensor) or inside.shape != (len(images),) or inside.dtype != torch.bool:
        raise InputError(f"threat: contains() returned {shown(inside)}; must be a bool for each image")
    ball, flat = ball_of(threat), perturbed.flatten(1)
    low, high = ball.bounds
    bounded = (flat >= low - ball.tolerance).all(1) & (flat <= high + ball.tolerance).all(1)
    return inside.to(flat.device) & flat.isfinite().all(1) & bounded


def _project_l1(delta: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """The nearest perturbation inside the ball and the bounds, exactly.

    It is that of soft thresholding: each entry comes nearer to zero by the same amount, and stops at zero and at its
    bound. The sum of all sizes falls with this amount, in straight lines between the points where an entry stops.
    """
    import torch

    low, high = threat.bounds
    flat, clean = delta.flatten(1), images.flatten(1)
    caps = torch.where(flat > 0, high - clean, clean - low).clamp_min(0).double()
    sizes = flat.abs().double()
    # From above: an entry begins to grow at its size and stops growing at its size minus its cap.
    knots, order = torch.cat([sizes, (sizes - caps).clamp_min(0)], 1).sort(dim=1, descending=True)
    growth = torch.cat([torch.ones_like(sizes), -torch.ones_like(sizes)], 1).gather(1, order).cumsum(1)
    gaps = torch.cat([knots[:, :-1] - knots[:, 1:], knots[:, -1:]], 1)  # the last one reaches down to zero
    sums = (growth * gaps).cumsum(1)  # of all sizes, at the lower end of each gap
    first = (sums < threat.eps).sum(1, keepdim=True).clamp_max(sums.shape[1] - 1)
    excess = sums.gather(1, first) - threat.eps
    amount = knots.gather(1, first) - gaps.gather(1, first) + excess.clamp_min(0) / growth.gather(1, first).clamp_min(1)
    amount = torch.where(sums[:, -1:] <= threat.eps, 0.0, amount)
    kept = torch.minimum((sizes - amount).clamp_min(0), caps)
    projected: Tensor = (kept.to(flat.dtype) * flat.sign()).view_as(delta)
    return projected


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, N, in a shape that can be multiplied with the images, N x ..."""
    return values.view(-1, *[1] * (images.ndim - 1))


def _norm2(delta: Tensor) -> Tensor:
    return per_image(delta.flatten(1).norm(dim=1), delta)


def _largest(delta: Tensor) -> Tensor:
    return per_image(delta.flatten(1).abs().amax(1), delta)


# Random numbers are drawn on the generator's device (the CPU) and moved, so that a seed means the same on every device.
def _rand(like: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    return torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _randn(like: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
