"""ARC: an attack on randomized ensembles that looks at each member by itself.

The mean gradient of members that err in different places leads nowhere: they cancel. ARC asks each member for its
nearest boundary instead, and for a point of the ball beyond as many of these boundaries as it can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pytest_gradmask.attacks.evaluate import SYNC_EVERY, should_sync
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import ThreatModel

Member = Callable[[torch.Tensor], torch.Tensor]

#: Halvings when two normals are weighed against each other.
_HALVINGS = 20
#: Expected accuracies nearer than this are the same: sums of weights are rounded.
_SAME = 1e-5
_TINY = 1e-30


class Ensemble(Protocol):
    """A randomized ensemble: member m answers with probability ``weights[m]``."""

    @property
    def members(self) -> Iterable[Member]:
        """Each maps images, N x C x H x W, to logits, N x K."""

    @property
    def weights(self) -> Iterable[float]:
        """One for each member, none below 0, of sum 1."""


@dataclass(slots=True)
class _View:
    """What the members show at some points. Distances are signed, in the norm of the threat and above 0 where fooled.

    Attributes:
        accuracy: expected accuracy, N.
        logit_margin: mean margin of the members, N.
        normals: gradient of each member's distance beyond its nearest boundary, N x M x D.
        offsets: that distance at the original image if the member were linear, N x M.
    """

    accuracy: torch.Tensor
    logit_margin: torch.Tensor
    normals: torch.Tensor
    offsets: torch.Tensor

    def replaced(self, other: _View, where: torch.Tensor) -> _View:
        return _View(
            torch.where(where, other.accuracy, self.accuracy),
            torch.where(where, other.logit_margin, self.logit_margin),
            torch.where(where[:, None, None], other.normals, self.normals),
            torch.where(where[:, None], other.offsets, self.offsets),
        )


@dataclass(slots=True)
class _Best:
    """For each image, the point of the lowest expected accuracy so far; of equals, that of the largest mean margin."""

    images: torch.Tensor
    accuracy: torch.Tensor
    logit_margin: torch.Tensor

    def update(self, images: torch.Tensor, view: _View) -> None:
        lower = view.accuracy < self.accuracy - _SAME
        same = (view.accuracy <= self.accuracy + _SAME) & (view.logit_margin > self.logit_margin)
        # An image that no member gets right is done, so that how long the others take makes no difference to it.
        better = (lower | same) & (self.accuracy > _SAME) & view.logit_margin.isfinite()  # a member's NaN is no success
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
        self.accuracy = torch.where(better, view.accuracy, self.accuracy)
        self.logit_margin = torch.where(better, view.logit_margin, self.logit_margin)

    def done(self) -> bool:
        return bool((self.accuracy <= _SAME).all())


def arc(
    model: Ensemble,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    nearest: int = 3,
    restarts: int = 1,
) -> torch.Tensor:
    """Accuracy reduction by the members of a randomized ensemble, one after the other (Dbouk and Shanbhag 2022, ARC).

    As in the paper, each step takes every member for linear, with the nearest of a few boundaries, adds to those
    fooled one member after the other, the heaviest first, and is undone where the expected accuracy rose. Three things
    differ, and make it exact for two linear members:

    - A mix of the members' normals is carried along, not the perturbation, and how much of the next normal it needs
      is found by bisection. The paper takes a bound, which loses members that need not be lost.
    - The goal of a step is a point of the whole ball and the bounds; the step goes some way towards it. Members
      further away than a step do not cancel, and members fooled at both ends of it are fooled on the way.
    - Every member comes first once, and the goal that fools the largest weight is taken: two light members
      together can outweigh the heaviest.

    For three members and more the result is a good one and not always the best. Between steps nothing is remembered
    but the point, so a member whose answers are random itself is seen through one draw at a time.

    Args:
        model: its members are asked one by one; the ensemble itself is not called.
        images: N x C x H x W in the bounds of ``threat``, float32.
        labels: int64, N.
        threat: where to search.
        steps: steps of each restart. Each takes, of each member, one forward and ``nearest`` backwards; so does the
            start.
        generator: draws the random starts of all restarts but the first; a CPU generator.
        step_size: the longest step, in input units; by default eps. Steps shrink linearly to 1 / ``steps`` of it, so
            that curved boundaries are not jumped over for ever, and are halved for an image whose step was undone.
        nearest: how many of the most likely wrong classes to measure the distance to.
        restarts: starts; the first is the clean image. The best point of all is returned.

    Returns:
        For each image the point with the lowest expected accuracy, in the ball and the bounds; of equals, that with
        the largest mean margin. The clean image where nothing better was found.

    Raises:
        InputError: on members and weights that do not fit, or on numbers out of range.
    """
    members, weights = _heaviest_first(model)
    for name, value in (("steps", steps), ("nearest", nearest), ("restarts", restarts)):
        if value < 1:
            raise InputError(f"{name}={value!r}: must be at least 1")
    size = threat.eps if step_size is None else step_size
    if not size > 0:
        raise InputError(f"step_size={step_size!r}: must be above 0, in input units")
    search = _Search(members, images.new_tensor(weights, dtype=torch.float32), images, labels, threat, nearest)
    worst = images.new_full((len(images),), float("inf"), dtype=torch.float32)
    best = _Best(images.clone(), worst, -worst)
    for restart in range(restarts):
        start = images if restart == 0 else threat.random_start(images, generator)
        search.run(start, steps, size, best)
        if best.done():
            break
    return best.images


def _heaviest_first(model: Ensemble) -> tuple[list[Member], list[float]]:
    members, weights = list(model.members), [float(weight) for weight in model.weights]
    if not members:
        raise InputError("members: an ensemble needs at least 1, got 0")
    if len(weights) != len(members):
        raise InputError(f"weights: {len(weights)} of them for {len(members)} members; give one for each member")
    if not all(weight >= 0 for weight in weights) or abs(math.fsum(weights) - 1) > _SAME:
        raise InputError(f"weights={weights}: must be probabilities of sum 1; divide them by their sum")
    order = sorted(range(len(members)), key=lambda index: -weights[index])
    return [members[index] for index in order], [weights[index] for index in order]


@dataclass(slots=True, frozen=True)
class _Search:
    """A search around some images. Members are in the order of their weights."""

    members: Sequence[Member]
    weights: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    threat: ThreatModel
    nearest: int

    def run(self, start: torch.Tensor, steps: int, size: float, best: _Best) -> None:
        """Walk from a point, and tell ``best`` of all points on the way."""
        current, view = start, self.look(start)
        best.update(current, view)
        sizes = torch.full_like(view.accuracy, size)
        for step in range(steps):
            if should_sync(current, step % SYNC_EVERY) and best.done():
                return
            way = self.goal(current, view) - current
            length = self.threat.distance(current + way, current)
            longest = sizes * (1 - step / steps)
            way = way * (longest / length.clamp_min(_TINY)).clamp_max(1.0).view(-1, 1, 1, 1)
            move = self.threat.project(current + way, self.images)
            found = self.look(move)
            best.update(move, found)
            kept = (found.accuracy <= view.accuracy + _SAME) & found.logit_margin.isfinite()
            current, view = torch.where(kept.view(-1, 1, 1, 1), move, current), view.replaced(found, kept)
            sizes = torch.where(kept, (2 * sizes).clamp_max(size), sizes / 2)

    def look(self, points: torch.Tensor) -> _View:
        """What each member shows at some points."""
        delta = (points - self.images).flatten(1)
        logit_margins, normals, offsets = [], [], []
        for member in self.members:
            logits, gap, gradient = self.nearest_boundary(member, points)
            normal, size = _normalised(gradient.flatten(1), self.threat)
            logit_margins.append(logit_margin(logits, self.labels))
            normals.append(normal)
            # Without a gradient the boundary is far away, and so it is where the model answers NaN.
            distance = (gap / size.clamp_min(_TINY)).nan_to_num(nan=-1e9).clamp(-1e9, 1e9)
            offsets.append(distance - (normal * delta).sum(1))
        margin_of = torch.stack(logit_margins, 1)
        return _View(
            ((margin_of <= 0) | margin_of.isnan()).mul(self.weights).sum(1),
            margin_of.mul(self.weights).sum(1),
            torch.stack(normals, 1),
            torch.stack(offsets, 1),
        )

    def nearest_boundary(self, member: Member, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, N x K; of the wrong class nearest to the label's, the logit less the label's, N, and its gradient."""
        point = points.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = member(point).float()
            label = self.labels[:, None]
            wrong = logits.detach().scatter(1, label, float("-inf"))
            likely = wrong.topk(min(self.nearest, logits.shape[1] - 1), 1).indices
            gaps = logits.gather(1, likely) - logits.gather(1, label)
            totals = gaps.sum(0).unbind()
        gaps = gaps.detach()
        gap, gradient, top = gaps[:, 0], torch.zeros_like(points), torch.full_like(gaps[:, 0], -torch.inf)
        for of_class, total in zip(gaps.unbind(1), totals, strict=True):
            if not total.requires_grad:  # a member cut out of the graph, without parameters that are in it
                break
            (slope,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True, materialize_grads=True)
            slope = slope.nan_to_num(nan=0.0)  # a NaN must not spread: such pixels stay
            distance = of_class / _normalised(slope.flatten(1), self.threat)[1].clamp_min(_TINY)
            closer = distance > top
            top, gap = torch.where(closer, distance, top), torch.where(closer, of_class, gap)
            gradient = torch.where(closer.view(-1, 1, 1, 1), slope, gradient)
        return logits.detach(), gap, gradient

    def goal(self, current: torch.Tensor, view: _View) -> torch.Tensor:
        """For each image the point of the ball where, were all members linear, the largest weight of them is fooled.

        Of equals that with the most room beyond the boundaries, or short of them where none can be reached, less the
        way still to go: who changed his mind between two as good would reach neither.
        """
        goal = torch.zeros_like(view.normals[:, 0])
        top_weight = torch.full_like(view.accuracy, -1.0)
        top_room = torch.full_like(view.accuracy, float("-inf"))
        indices = range(len(self.members))
        for first in indices:
            mix = view.normals[:, first]
            delta = self.furthest(mix)
            beyond = self.beyond(delta, view)
            room = beyond[:, first]
            fooled = torch.zeros_like(beyond, dtype=torch.bool)
            fooled[:, first] = room > 0
            for other in indices:
                if other == first:
                    continue
                mixed = self.balanced(mix, other, fooled, view)
                moved = self.furthest(mixed)
                beyond = self.beyond(moved, view)
                more = fooled.clone()
                more[:, other] = True
                least = beyond.masked_fill(~more, float("inf")).amin(1)
                adds = least > 0
                mix, delta = torch.where(adds[:, None], mixed, mix), torch.where(adds[:, None], moved, delta)
                fooled, room = torch.where(adds[:, None], more, fooled), torch.where(adds, least, room)
            weight = fooled.mul(self.weights).sum(1)
            room = room - self.threat.distance(delta.view_as(current), current - self.images)
            better = (weight > top_weight + _SAME) | ((weight > top_weight - _SAME) & (room > top_room))
            goal = torch.where(better[:, None], delta, goal)
            top_weight, top_room = torch.where(better, weight, top_weight), torch.where(better, room, top_room)
        return self.images + goal.view_as(self.images)

    def balanced(self, mix: torch.Tensor, other: int, fooled: torch.Tensor, view: _View) -> torch.Tensor:
        """As much of another member's normal in the mix as puts it as far beyond its boundary as the worst fooled one.

        For one fooled member this is the largest distance by which both can be fooled: the further the ball's
        furthest point moves towards one normal, the further it is from the other's.
        """
        low = torch.zeros_like(view.accuracy)
        high = torch.ones_like(low)
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            beyond = self.beyond(self.furthest(torch.lerp(mix, view.normals[:, other], share[:, None])), view)
            more = beyond.masked_fill(~fooled, float("inf")).amin(1) > beyond[:, other]
            low, high = torch.where(more, share, low), torch.where(more, high, share)
        return _normalised(torch.lerp(mix, view.normals[:, other], low[:, None]), self.threat)[0]

    def beyond(self, delta: torch.Tensor, view: _View) -> torch.Tensor:
        """How far beyond its boundary each member would be, N x M."""
        return (view.normals * delta[:, None]).sum(2) + view.offsets

    def furthest(self, direction: torch.Tensor) -> torch.Tensor:
        """The perturbation, N x D, of the ball and the bounds that goes furthest in a direction, N x D."""
        eps, (low, high) = self.threat.eps, self.threat.bounds
        flat = self.images.flatten(1)
        unit = _normalised(direction, self.threat)[0]
        if self.threat.norm == "Linf":
            # The sign, but continuous: two mixes between which a pixel turns have all its values between them.
            return (flat + (unit * (100 * unit.shape[1] * eps)).clamp(-eps, eps)).clamp(low, high) - flat
        scale = torch.full_like(unit[:, :1], eps)
        for _ in range(5):  # what pixels at a bound cannot take the others may
            delta = (flat + scale * unit).clamp(low, high) - flat
            scale = scale * eps / delta.norm(dim=1, keepdim=True).clamp_min(_TINY)
        return delta


def _normalised(normal: torch.Tensor, threat: ThreatModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Normals, N x D, of dual norm 1, or 0 where they are, and what the dual norm was, N."""
    # Largest entry first: sums of very small or large gradients leave the range of a float.
    largest = normal.abs().amax(1, keepdim=True).clamp_min(_TINY)
    scaled = normal / largest
    size = scaled.norm(p=1 if threat.norm == "Linf" else 2, dim=1, keepdim=True)
    return scaled / size.clamp_min(_TINY), (largest * size).squeeze(1)
