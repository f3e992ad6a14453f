"""Plant an adversarial example: give a defense a last layer of two classes for which one is known.

After Zimmermann et al. (NeurIPS 2022). What comes before the last linear layer, front end included, and what
comes after it (a scale, a softmax) stay those of the defense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pytest_gradmask.attacks.bypass.bpda import Rewired
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle, as_logits
from pytest_gradmask.defense import Outputs
from pytest_gradmask.errors import InputError
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel

#: Where the threshold lies between the best inner point (0) and the planted one (1). Near the planted one, so that
#: random points hardly reach it; not at it, so that rounding does not decide. Halfway where noise decides, too.
_CLOSENESS = 0.9
_CLOSENESS_RANDOMIZED = 0.5
_LEAST_MARGIN = 1e-6


class Head(nn.Module):
    """Two logits for features (N x D): class 1 where ``direction`` leads beyond ``threshold``.

    Args:
        centre, direction: D.
        threshold: along ``direction``, from ``centre``.
    """

    centre: torch.Tensor
    direction: torch.Tensor

    def __init__(self, centre: torch.Tensor, direction: torch.Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("direction", direction)
        self.threshold = threshold

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # The centre first: features may be far larger than what they differ by.
        score = (features.float() - self.centre) @ self.direction - self.threshold
        return torch.stack([-score / 2, score / 2], 1)


class _OnTop(nn.Module):
    """A head that reads the logits of a model."""

    def __init__(self, model: nn.Module, head: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.head, self.outputs = model, head, outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(as_logits(self.model(images), self.outputs))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class BinarizedClassifier:
    """A last layer and the point that it was made for.

    Attributes:
        head: classifies the clean image and the inner points as 0, ``example`` as 1.
        linear: the layer whose place the head takes; None: the head reads the logits.
        example: 1 x C x H x W, at the boundary of the ball.
    """

    head: Head
    linear: nn.Linear | None
    example: torch.Tensor


def with_head(model: nn.Module, head: nn.Module, linear: nn.Linear) -> nn.Module:
    """The model with another layer in the place of a linear one. No weight is copied.

    Raises:
        InputError: the linear layer is not part of the model.
    """
    name = next((name for name, module in model.named_modules() if module is linear), None)
    if name is None:
        raise InputError(
            f"through: {type(model).__name__} does not contain the linear layer that the defense ends in, so it cannot "
            "be given the same test; pass a model made from the defense's own modules, such as bypassed(model, ...)"
        )
    return Rewired(model, {name: lambda original, images: head})


def modified(model: nn.Module, planted: BinarizedClassifier, stream: RandomStream, outputs: Outputs) -> Oracle:
    """The model with the planted head, as attacks see it: images in, two logits out."""
    if planted.linear is None:
        return Oracle(_OnTop(model, planted.head, outputs), stream)
    return Oracle(with_head(model, planted.head, planted.linear), stream, outputs)


def last_linear(
    model: nn.Module, stream: RandomStream, outputs: Outputs, images: torch.Tensor, forwards: int
) -> nn.Linear | None:
    """The linear layer that every forward ends in, where another with two outputs can take its place.

    Its input is N x D and its output has the shape of the logits. None where there is no such layer: a network that
    ends in a convolution, an ensemble whose members end in a layer each.

    Args:
        model, stream, outputs: as for `Oracle`.
        images: N x C x H x W, a few.
        forwards: to watch; more than one only if the model is randomized.
    """
    oracle = Oracle(model, stream, outputs)
    last: set[nn.Linear | None] = set()
    seen: list[tuple[nn.Linear, torch.Size, torch.Size]] = []

    def watch(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, torch.Tensor) and len(inputs) == 1:
            (given,) = inputs
            if isinstance(given, torch.Tensor):
                seen.append((module, given.shape, output.shape))

    hooks = [module.register_forward_hook(watch) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with torch.no_grad():
            for _ in range(forwards):
                seen.clear()
                shape = oracle(images).shape
                fits = [layer for layer, before, after in seen if len(before) == 2 and after == shape]
                last.add(fits[-1] if fits and fits[-1] is seen[-1][0] else None)
    finally:
        for hook in hooks:
            hook.remove()
    linear = last.pop() if len(last) == 1 else None
    if linear is None:
        return None
    zeros = torch.zeros(linear.in_features, device=images.device)
    try:
        with torch.no_grad():
            two = Oracle(with_head(model, Head(zeros, zeros, 0.0), linear), stream, outputs)(images)
    except Exception:  # what follows the layer is not ours, and may insist on its number of classes
        return None
    return linear if two.shape == (len(images), 2) else None


def _features(
    oracle: Oracle, linear: nn.Linear | None, points: torch.Tensor, forwards: int, chunk: int
) -> torch.Tensor:
    """Input of the linear layer, or the logits, averaged over forwards; float64, N x D."""
    total: torch.Tensor | float = 0.0
    with torch.no_grad():
        for _ in range(forwards):
            total = total + torch.cat([_once(oracle, linear, some) for some in points.split(chunk)]).double()
    assert isinstance(total, torch.Tensor)
    return total / forwards


def _once(oracle: Oracle, linear: nn.Linear | None, points: torch.Tensor) -> torch.Tensor:
    if linear is None:
        return oracle(points)  # type: ignore[no-any-return]
    seen: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        oracle(points)
    finally:
        hook.remove()
    # A forward may pass the layer more than once (the mean of an ensemble on one backbone) or, at random, not at all.
    return torch.stack(seen).mean(0) if seen else points.new_full((len(points), linear.in_features), math.nan)


def on_sphere(image: torch.Tensor, count: int, threat: ThreatModel, generator: torch.Generator) -> torch.Tensor:
    """Random points at a distance of eps, clipped to the bounds: corners of the cube (Linf), even directions (L2).

    Args:
        image: 1 x C x H x W.
    """
    around = image.expand(count, -1, -1, -1)
    noise = torch.randn(around.shape, generator=generator, dtype=image.dtype).to(image.device)
    return threat.project(around + threat.eps * threat.step(noise), around)


def usual_margin(
    oracle: Oracle, linear: nn.Linear | None, images: torch.Tensor, labels: torch.Tensor, forwards: int, chunk: int
) -> float:
    """Median size of the clean images' margins in what the head will replace, above 0.

    A head with margins like these keeps logits that saturate a softmax, or that drown in noise, what they are.
    """
    features = _features(oracle, linear, images, forwards, chunk)
    with torch.no_grad():
        logits = features.float() if linear is None else linear(features.to(linear.weight.dtype))
    return max(float(logit_margin(logits, labels).abs().median()), _LEAST_MARGIN)


def plant(
    oracle: Oracle,
    linear: nn.Linear | None,
    image: torch.Tensor,
    *,
    size: float,
    threat: ThreatModel,
    gap: float,
    inner: int,
    boundary: int,
    forwards: int,
    chunk: int,
    generator: torch.Generator,
) -> BinarizedClassifier | None:
    """Fit a head to one image; None where its features do not separate any boundary point from the inner points.

    The direction is Fisher's linear discriminant between the inner points and one boundary point: that of the
    candidates which lies farthest from the inner points, measured by their covariance, which is shrunk halfway to
    a multiple of the identity because there may be fewer points than features.

    Args:
        oracle: the defense.
        linear: what to replace; None puts the head on the logits.
        image: 1 x C x H x W.
        size: margin of the clean image to class 1, above 0; see `usual_margin`.
        gap: inner points keep this share of eps away from the boundary.
        inner, boundary: points of each kind.
        forwards: over which features are averaged; above 1 only if the defense is randomized.
        chunk: points a forward gets.
        generator: draws the points.
    """
    small = ThreatModel(threat.eps * (1 - gap), threat.norm, threat.bounds)
    inside = image.expand(inner - inner // 2, -1, -1, -1)
    points = torch.cat(
        [
            image,
            on_sphere(image, inner // 2, small, generator),
            small.random_start(inside, generator),
            on_sphere(image, boundary, threat, generator),
        ]
    )
    features = _features(oracle, linear, points, forwards, chunk)
    known, candidates = features[: 1 + inner], features[1 + inner :]
    found = _discriminant(known, candidates)
    if found is None:
        return None
    chosen, centre, direction = found
    scores = (known - centre) @ direction
    top, peak = float(scores.max()), float((candidates[chosen] - centre) @ direction)
    if not peak > top:
        return None
    threshold = top + (_CLOSENESS if forwards == 1 else _CLOSENESS_RANDOMIZED) * (peak - top)
    scale = size / (threshold - float(scores[0]))
    head = Head(centre.float(), (scale * direction).float(), scale * threshold)
    return BinarizedClassifier(head, linear, points[1 + inner + chosen][None])


def _discriminant(known: torch.Tensor, candidates: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor] | None:
    """Index of the farthest candidate, centre of the known points, and the direction that separates them.

    Solved among points, not among features, of which there may be many more (Woodbury's identity).
    """
    centre = known.mean(0)
    deviations = (known - centre) / (len(known) - 1) ** 0.5
    towards = candidates - centre
    variance = float(deviations.square().sum() / deviations.shape[1])
    if not (math.isfinite(variance) and bool(towards.isfinite().all())):
        return None
    ridge = max(variance, 1e-30)  # inner points may all look the same
    gram = deviations @ deviations.T
    gram.diagonal().add_(ridge)
    directions = (towards - torch.linalg.solve(gram, deviations @ towards.T).T @ deviations) / ridge
    squares = (towards * directions).sum(1)
    chosen = int(squares.argmax())
    distance = float(squares[chosen])
    if not (math.isfinite(distance) and distance > 0):
        return None
    return chosen, centre, directions[chosen] / distance**0.5
