"""ARC: an attack on randomized ensembles that uses the gradient of each member separately.

The gradients of members that err in different places can cancel in their mean, so that the mean leads nowhere. ARC
instead looks for the nearest decision boundary of each member, and for a point of the ball that is beyond as many of
these boundaries as possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pytest_gradmask.attacks.arc_geometry import SAME, TINY, Linearization, best_point, normalised
from pytest_gradmask.attacks.evaluate import SYNC_EVERY, should_sync
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.protocol import Classifier
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import ThreatModel, per_image


class Ensemble(Protocol):
    """A randomized ensemble: member m answers with probability ``weights[m]``."""

    @property
    def members(self) -> Iterable[Classifier]:
        """Each maps images, N x C x H x W, to logits, N x K."""

    @property
    def weights(self) -> Iterable[float]:
        """One for each member, none below 0, of sum 1."""


@dataclass(slots=True)
class _LowestAccuracy:
    """For each image, the iterate with the lowest expected accuracy; if equal, with the largest mean logit margin."""

    adv_best: Tensor
    accuracy_best: Tensor
    logit_margin_best: Tensor

    def update(self, x_adv: Tensor, found: Linearization) -> None:
        lower = found.accuracy < self.accuracy_best - SAME
        same = (found.accuracy <= self.accuracy_best + SAME) & (found.logit_margin > self.logit_margin_best)
        # An image that no member classifies correctly is final. So its result does not depend on the other images.
        better = (lower | same) & (self.accuracy_best > SAME)
        better &= found.logit_margin.isfinite()  # a member that returns NaN is no success
        self.adv_best = torch.where(per_image(better, x_adv), x_adv, self.adv_best)
        self.accuracy_best = torch.where(better, found.accuracy, self.accuracy_best)
        self.logit_margin_best = torch.where(better, found.logit_margin, self.logit_margin_best)

    def all_fooled(self) -> bool:
        return bool((self.accuracy_best <= SAME).all())


def arc(
    model: Ensemble,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    nearest: int = 3,
    restarts: int = 1,
) -> Tensor:
    """Accuracy reduction by the members of a randomized ensemble in turn (ARC; Dbouk and Shanbhag 2022).

    As in the paper (arXiv:2206.06737), each step approximates every member by a linear classifier at the nearest of a
    few boundaries. It starts with the member of the largest weight and adds one member after the other to those that
    are fooled. A step that increases the expected accuracy is undone. Three things differ from the paper, and make
    the attack exact for two linear members:

    - It keeps a mixture of the members' normals, not the perturbation. A bisection finds how much of the next normal
      the mixture needs. The paper uses a bound, which gives up members that could be fooled.
    - The goal of a step is a point of the whole ball and the bounds, and the step moves towards it. So members that
      are further away than one step do not cancel, and members that are fooled at both ends of a step are fooled on
      the way.
    - Each member is the first once, and the goal that fools the largest total weight is taken: two light members
      together can outweigh the heaviest one.

    For three or more members the result is good but not always optimal. Only the iterate is kept between steps, so a
    member that is random itself is evaluated with one draw at a time.

    Args:
        model: its members are queried one by one; the ensemble itself is not called.
        images: N x C x H x W in the bounds of ``threat``, float32.
        labels: int64, N.
        threat: where to search.
        steps: steps of each restart. Each step takes one forward and ``nearest`` backward passes of each member, and
            so does the start.
        generator: draws the random starts of all restarts but the first; a CPU generator.
        step_size: the longest step, in input units; by default eps. Steps shrink linearly to 1 / ``steps`` of it, so
            that they become short enough for curved boundaries. They are halved for an image whose step was undone.
        nearest: how many of the most likely wrong classes are candidates for the nearest boundary.
        restarts: number of starts; the first is the clean image. The best iterate of all is returned.

    Returns:
        For each image the iterate with the lowest expected accuracy, in the ball and the bounds. If several have the
        same, it is the one with the largest mean logit margin. It is the clean image where nothing better was found.

    Raises:
        InputError: members and weights do not fit, or a number is out of range.
    """
    members, weights = _heaviest_first(model)
    for name, value in (("steps", steps), ("nearest", nearest), ("restarts", restarts)):
        if value < 1:
            raise InputError(f"{name}={value!r}: must be at least 1")
    longest = threat.eps if step_size is None else step_size
    if not longest > 0:
        raise InputError(f"step_size={step_size!r}: must be above 0, in input units")
    search = _Search(
        members=members,
        weights=images.new_tensor(weights, dtype=torch.float32),
        images=images,
        labels=labels,
        threat=threat,
        nearest=nearest,
    )
    infinite = images.new_full((len(images),), float("inf"), dtype=torch.float32)
    best = _LowestAccuracy(images.clone(), infinite, -infinite)
    for restart in range(restarts):
        x_init = images if restart == 0 else threat.random_start(images, generator)
        search.run(x_init, steps, longest, best)
        if best.all_fooled():
            break
    return best.adv_best


def _heaviest_first(model: Ensemble) -> tuple[list[Classifier], list[float]]:
    members, weights = list(model.members), [float(weight) for weight in model.weights]
    if not members:
        raise InputError("members: an ensemble needs at least 1, got 0")
    if len(weights) != len(members):
        raise InputError(f"weights: {len(weights)} of them for {len(members)} members; give one for each member")
    if not all(weight >= 0 for weight in weights) or abs(math.fsum(weights) - 1) > SAME:
        raise InputError(f"weights={weights}: must be probabilities of sum 1; divide them by their sum")
    order = sorted(range(len(members)), key=lambda index: -weights[index])
    return [members[index] for index in order], [weights[index] for index in order]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    """The search around a batch of images. Members are in the order of their weights, the heaviest first."""

    members: Sequence[Classifier]
    weights: Tensor
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    nearest: int

    def run(self, x_init: Tensor, steps: int, longest: float, best: _LowestAccuracy) -> None:
        """Search from a start, and update ``best`` with every iterate."""
        x_adv, linear = x_init, self.linearize(x_init)
        best.update(x_adv, linear)
        step_size = torch.full_like(linear.accuracy, longest)
        for step in range(steps):
            if should_sync(x_adv, step % SYNC_EVERY) and best.all_fooled():
                return
            change = best_point(x_adv, linear, self.weights, self.images, self.threat) - x_adv
            length = self.threat.distance(x_adv + change, x_adv)
            limit = step_size * (1 - step / steps)
            change = change * per_image((limit / length.clamp_min(TINY)).clamp_max(1.0), change)
            x_next = self.threat.project(x_adv + change, self.images)
            linear_next = self.linearize(x_next)
            best.update(x_next, linear_next)
            accepted = (linear_next.accuracy <= linear.accuracy + SAME) & linear_next.logit_margin.isfinite()
            x_adv = torch.where(per_image(accepted, x_adv), x_next, x_adv)
            linear = linear.replaced(linear_next, accepted)
            step_size = torch.where(accepted, (2 * step_size).clamp_max(longest), step_size / 2)

    def linearize(self, x_adv: Tensor) -> Linearization:
        """Evaluate every member at the iterates, with the distance from its nearest boundary."""
        delta = (x_adv - self.images).flatten(1)
        all_margins, normals, offsets = [], [], []
        for member in self.members:
            logits, difference, gradient = self.nearest_boundary(member, x_adv)
            normal, dual_norm = normalised(gradient.flatten(1), self.threat)
            all_margins.append(logit_margin(logits, self.labels))
            normals.append(normal)
            # Without a gradient the boundary counts as far away, and so it does where the member returns NaN.
            distance = (difference / dual_norm.clamp_min(TINY)).nan_to_num(nan=-1e9).clamp(-1e9, 1e9)
            offsets.append(distance - (normal * delta).sum(1))
        logit_margins = torch.stack(all_margins, 1)
        return Linearization(
            accuracy=((logit_margins <= 0) | logit_margins.isnan()).mul(self.weights).sum(1),
            logit_margin=logit_margins.mul(self.weights).sum(1),
            normals=torch.stack(normals, 1),
            offsets=torch.stack(offsets, 1),
        )

    def nearest_boundary(self, member: Classifier, x_adv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The boundary between the label and the wrong class that is nearest, of the most likely ones.

        Returns:
            The logits, N x K; the logit of the wrong class minus the label's, N; and the gradient of this difference.
        """
        point = x_adv.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = member(point).float()
            label = self.labels[:, None]
            wrong = logits.detach().scatter(1, label, float("-inf"))
            likely = wrong.topk(min(self.nearest, logits.shape[1] - 1), 1).indices
            differences = logits.gather(1, likely) - logits.gather(1, label)
            totals = differences.sum(0).unbind()
        differences = differences.detach()
        difference, gradient = differences[:, 0], torch.zeros_like(x_adv)
        nearest = torch.full_like(difference, -torch.inf)
        for of_class, total in zip(differences.unbind(1), totals, strict=True):
            if not total.requires_grad:  # the member detaches its input, and has no parameters that need a gradient
                break
            (of_total,) = torch.autograd.grad(
                total, point, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            of_total = of_total.nan_to_num(nan=0.0)  # such pixels stay where they are
            distance = of_class / normalised(of_total.flatten(1), self.threat)[1].clamp_min(TINY)
            closer = distance > nearest
            nearest, difference = torch.where(closer, distance, nearest), torch.where(closer, of_class, difference)
            gradient = torch.where(per_image(closer, of_total), of_total, gradient)
        return logits.detach(), difference, gradient
