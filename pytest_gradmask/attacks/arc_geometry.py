"""The geometry of ARC: where in the ball the most members are fooled, if all members are linear classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_gradmask.threat import ThreatModel

#: Steps of the bisection for the mixture of two normals.
_BISECTIONS = 20
#: Sums of weights that differ by less are equal, because they are rounded.
SAME = 1e-5
TINY = 1e-30


@dataclass(kw_only=True, slots=True)
class Linearization:
    """Each member at the current iterates, approximated by a linear classifier.

    Distances are in the norm of the threat model, and above 0 where the member is fooled.

    Attributes:
        accuracy: expected accuracy of the ensemble, N.
        logit_margin: mean logit margin of the members, N.
        normals: for each member, the gradient of the distance from its nearest boundary, N x M x D.
        offsets: the distance of the original image from that boundary, if the member were linear, N x M.
    """

    accuracy: Tensor
    logit_margin: Tensor
    normals: Tensor
    offsets: Tensor

    def replaced(self, other: Linearization, where: Tensor) -> Linearization:
        """``other`` for the images at which ``where`` is true, and this one for the rest."""
        return Linearization(
            accuracy=torch.where(where, other.accuracy, self.accuracy),
            logit_margin=torch.where(where, other.logit_margin, self.logit_margin),
            normals=torch.where(where[:, None, None], other.normals, self.normals),
            offsets=torch.where(where[:, None], other.offsets, self.offsets),
        )


def best_point(x_adv: Tensor, linear: Linearization, weights: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """For each image the point of the ball at which the fooled members have the largest total weight.

    This assumes that all members are linear. If several points fool the same weight, the one with the largest
    clearance is taken. The clearance is the least distance beyond the boundaries of the fooled members, minus the
    distance that is left to the point. Without this subtraction the attack could alternate between two goals that
    are equally good, and reach neither.
    """
    goal = torch.zeros_like(linear.normals[:, 0])
    weight_best = torch.full_like(linear.accuracy, -1.0)
    clearance_best = torch.full_like(linear.accuracy, float("-inf"))
    indices = range(len(weights))
    for first in indices:
        direction = linear.normals[:, first]
        delta = _furthest(direction, images, threat)
        distances = _distances(delta, linear)
        clearance = distances[:, first]
        fooled = torch.zeros_like(distances, dtype=torch.bool)
        fooled[:, first] = clearance > 0
        for other in indices:
            if other == first:
                continue
            new_direction = _balanced(direction, other, fooled, linear, images, threat)
            new_delta = _furthest(new_direction, images, threat)
            distances = _distances(new_delta, linear)
            new_fooled = fooled.clone()
            new_fooled[:, other] = True
            least = distances.masked_fill(~new_fooled, float("inf")).amin(1)
            added = least > 0
            direction = torch.where(added[:, None], new_direction, direction)
            delta = torch.where(added[:, None], new_delta, delta)
            fooled = torch.where(added[:, None], new_fooled, fooled)
            clearance = torch.where(added, least, clearance)
        weight = fooled.mul(weights).sum(1)
        clearance = clearance - threat.distance(delta.view_as(x_adv), x_adv - images)
        better = (weight > weight_best + SAME) | ((weight > weight_best - SAME) & (clearance > clearance_best))
        goal = torch.where(better[:, None], delta, goal)
        weight_best = torch.where(better, weight, weight_best)
        clearance_best = torch.where(better, clearance, clearance_best)
    return images + goal.view_as(images)


def _balanced(
    direction: Tensor, other: int, fooled: Tensor, linear: Linearization, images: Tensor, threat: ThreatModel
) -> Tensor:
    """Mix another member's normal into a direction, until that member is fooled by as much as the others.

    The others are the members that are fooled already, of which the one with the least distance counts.

    For one fooled member this gives the largest distance by which both can be fooled: the more the ball's
    furthest point moves along one normal, the less it moves along the other.
    """
    low = torch.zeros_like(linear.accuracy)
    high = torch.ones_like(low)
    normal = linear.normals[:, other]
    for _ in range(_BISECTIONS):
        share = (low + high) / 2
        distances = _distances(_furthest(torch.lerp(direction, normal, share[:, None]), images, threat), linear)
        more = distances.masked_fill(~fooled, float("inf")).amin(1) > distances[:, other]
        low, high = torch.where(more, share, low), torch.where(more, high, share)
    return normalised(torch.lerp(direction, normal, low[:, None]), threat)[0]


def _distances(delta: Tensor, linear: Linearization) -> Tensor:
    """Distance of a perturbation (N x D) from each member's boundary, N x M; above 0 where the member is fooled."""
    return (linear.normals * delta[:, None]).sum(2) + linear.offsets


def _furthest(direction: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """The perturbation, N x D, of the ball and the bounds that goes furthest in a direction, N x D."""
    eps, (low, high) = threat.eps, threat.bounds
    flat = images.flatten(1)
    unit = normalised(direction, threat)[0]
    if threat.norm == "Linf":
        # A continuous version of the sign: between two mixtures, a pixel takes all values from -eps to eps.
        return (flat + (unit * (100 * unit.shape[1] * eps)).clamp(-eps, eps)).clamp(low, high) - flat
    if threat.norm == "L1":  # far outside, the nearest point of the ball is the one that goes furthest
        far = images + (100 * unit.shape[1] * eps * unit).view_as(images)
        return (threat.project(far, images) - images).flatten(1)
    scale = torch.full_like(unit[:, :1], eps)
    for _ in range(5):  # pixels at a bound cannot move, so the others move further
        delta = (flat + scale * unit).clamp(low, high) - flat
        scale = scale * eps / delta.norm(dim=1, keepdim=True).clamp_min(TINY)
    return delta


def normalised(normal: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Normals, N x D, scaled to dual norm 1 (zeros stay zero), and the dual norm that they had, N."""
    # Divided by the largest entry first: sums of very small or large gradients leave the range of a float.
    largest = normal.abs().amax(1, keepdim=True).clamp_min(TINY)
    scaled = normal / largest
    size = threat.dual_norm(scaled)[:, None]
    return scaled / size.clamp_min(TINY), (largest * size).squeeze(1)
