"""The binarized classifier: a defense with a last layer of two classes, and a known adversarial example.

After Zimmermann et al. (NeurIPS 2022, arXiv:2206.13991). Everything before the last linear layer, with the front end,
and everything after it (a scale, a softmax) stays as in the defense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import Rewired
from pytest_gradmask.attacks.bypass.hooks import inside_transform
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle, as_logits, parameter_dtype
from pytest_gradmask.binarization.restriction import Restriction, search
from pytest_gradmask.defense import Outputs
from pytest_gradmask.errors import InputError
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel, per_image

#: Share of the score of the embedded adversarial example that is needed for class 1, from the score of the clean image.
#: Chosen with ``python -m audits.honest.binarization`` on 7 honest models, 3 threat models and 4 images each, 84 in all
#: (tables in ``docs/findings.md``). APGD-20 reaches at least 0.768 on each image; 0.8 would miss one, a local maximum.
#: FGSM at half of eps reaches at most 0.515. APGD-50 along a gradient of cosine 0.5 exceeds 0.75 on 10 images, and on
#: at most half of those of one model and threat model, where a pass takes 95 %. On three trained models that had no
#: part in the choice: APGD-20 at least 0.976, FGSM at most 0.540, cosine 0.5 on 6 images of 36, 3 of 4 of one model.
CLOSENESS = 0.75
#: Lower because of their noise: the example is evaluated in five passes.
_CLOSENESS_RANDOMIZED = 0.7
_LEAST_MARGIN = 1e-6


class BinaryHead(nn.Module):
    """A linear classifier of features (N x D) with two logits. Class 1 is beyond ``threshold`` along ``direction``.

    Args:
        centre, direction: D.
        threshold: along ``direction``, from ``centre``.
    """

    centre: Tensor
    direction: Tensor

    def __init__(self, centre: Tensor, direction: Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("direction", direction)
        self.threshold = threshold

    def forward(self, features: Tensor) -> Tensor:
        # The centre is subtracted first: features may be much larger than their differences.
        score = (features.float() - self.centre) @ self.direction - self.threshold
        return torch.stack([-score / 2, score / 2], 1)


class _HeadOnLogits(nn.Module):
    """A head whose features are the logits of a model."""

    def __init__(self, model: nn.Module, head: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.head, self.outputs = model, head, outputs

    def forward(self, images: Tensor) -> Tensor:
        return self.head(as_logits(self.model(images), self.outputs))  # type: ignore[no-any-return]


class _Restricted(nn.Module):
    """A model behind a restriction. It computes in float32, and the model in its own type."""

    def __init__(self, restriction: Restriction, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.restriction, self.model, self.dtype = restriction, model, dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.restriction(images).to(self.dtype))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class BinarizedClassifier:
    """A new last layer, and the adversarial example that it was fitted for.

    Attributes:
        head: classifies the clean image and the inner points as 0, and ``example`` as 1.
        linear: the layer that the head replaces. None: the head takes the logits as features.
        restriction: is applied to images before the defense.
        example: the embedded adversarial example, 1 x C x H x W, inside the ball.
    """

    head: BinaryHead
    linear: nn.Linear | None
    restriction: Restriction
    example: Tensor


def with_head(model: nn.Module, head: nn.Module, linear: nn.Linear) -> nn.Module:
    """The model with a linear layer replaced by a head. No weight is copied.

    Raises:
        InputError: the linear layer is not part of the model.
    """
    name = next((name for name, module in model.named_modules() if module is linear), None)
    if name is None:
        raise InputError(
            f"through: {type(model).__name__} does not contain the last linear layer of the defense, so it cannot be "
            "given the same test; pass a model made from the defense's own modules, such as bypassed(model, ...)"
        )
    return Rewired(model, {name: lambda original, images: head})


def binarized_oracle(
    model: nn.Module, classifier: BinarizedClassifier, stream: RandomStream, outputs: Outputs
) -> Oracle:
    """The model behind the restriction and with the new head, in the form that attacks query."""
    if classifier.linear is None:
        binarized: nn.Module = _HeadOnLogits(model, classifier.head, outputs)
        outputs = "logits"
    else:
        binarized = with_head(model, classifier.head, classifier.linear)
    return Oracle(_Restricted(classifier.restriction, binarized, parameter_dtype(model)), stream, outputs)


def find_last_linear(
    model: nn.Module, stream: RandomStream, outputs: Outputs, images: Tensor, forwards: int
) -> nn.Linear | None:
    """The linear layer that every forward pass ends with, if a layer with two outputs can replace it.

    Its input is N x D and its output has the shape of the logits. There is no such layer in a network that ends with
    a convolution, or in an ensemble whose members end with one layer each.

    Args:
        model, stream, outputs: as for `Oracle`.
        images: N x C x H x W, a few.
        forwards: number of forward passes to observe; more than one only if the model is randomized.

    Returns:
        The layer, or None.
    """
    oracle = Oracle(model, stream, outputs)
    last: set[nn.Linear | None] = set()
    calls: list[tuple[nn.Linear, torch.Size, torch.Size]] = []

    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, Tensor) and len(inputs) == 1 and not inside_transform():
            (features,) = inputs
            if isinstance(features, Tensor):
                calls.append((module, features.shape, output.shape))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with torch.no_grad():
            for _ in range(forwards):
                calls.clear()
                shape = oracle(images).shape
                fits = [layer for layer, before, after in calls if len(before) == 2 and after == shape]
                last.add(fits[-1] if fits and fits[-1] is calls[-1][0] else None)
    finally:
        for hook in hooks:
            hook.remove()
    linear = last.pop() if len(last) == 1 else None
    if linear is None:
        return None
    zeros = torch.zeros(linear.in_features, device=images.device)
    try:
        with torch.no_grad():
            logits = Oracle(with_head(model, BinaryHead(zeros, zeros, 0.0), linear), stream, outputs)(images)
    except Exception:  # code of the user after the layer, which may need the original number of classes
        return None
    return linear if logits.shape == (len(images), 2) else None


def _mean_features(oracle: Oracle, linear: nn.Linear | None, points: Tensor, forwards: int, chunk: int) -> Tensor:
    """Input of the linear layer, or the logits, averaged over forward passes; float64, N x D."""
    total: Tensor | float = 0.0
    with torch.no_grad():
        for _ in range(forwards):
            total = total + torch.cat([_features(oracle, linear, some) for some in points.split(chunk)]).double()
    assert isinstance(total, Tensor)
    return total / forwards


def _features(oracle: Oracle, linear: nn.Linear | None, points: Tensor) -> Tensor:
    if linear is None:
        return oracle(points)  # type: ignore[no-any-return]
    calls: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].float()))
    try:
        oracle(points)
    finally:
        hook.remove()
    # One forward pass may run the layer several times (the mean of an ensemble on one backbone) or, at random, never.
    return torch.stack(calls).mean(0) if calls else points.new_full((len(points), linear.in_features), math.nan)


def median_logit_margin(
    oracle: Oracle, linear: nn.Linear | None, images: Tensor, labels: Tensor, forwards: int, chunk: int
) -> float:
    """Median absolute logit margin of the clean images in the layer that the head replaces, above 0.

    If the head has margins of this size, its logits saturate a softmax, or are small compared with noise, just as
    those of the defense.
    """
    features = _mean_features(oracle, linear, images, forwards, chunk)
    with torch.no_grad():
        logits = features.float() if linear is None else linear(features.to(linear.weight.dtype))
    return max(float(logit_margin(logits, labels).abs().median()), _LEAST_MARGIN)


def fit_binarized_classifier(
    oracle: Oracle,
    linear: nn.Linear | None,
    restriction: Restriction,
    *,
    clean_logit_margin: float,
    threat: ThreatModel,
    separation: float,
    inner: int,
    boundary: int,
    forwards: int,
    chunk: int,
    generator: torch.Generator,
) -> BinarizedClassifier | None:
    """Fit a head to one image. None if its features do not separate any boundary point from the inner points.

    The direction is Fisher's linear discriminant between the inner points and one boundary point. Of all candidates,
    this is the boundary point that is farthest from the inner points, measured by their covariance. The covariance is
    shrunk halfway to a multiple of the identity, because there may be fewer points than features. Any gradient finds a
    point that is farther in this direction than a random one. So the embedded adversarial example is the best point
    that a search without gradients finds, and the threshold is near its score.

    Args:
        oracle: the defense.
        linear: the layer to replace; None puts the head on the logits.
        restriction: of one image. All points are in its patterns.
        clean_logit_margin: difference of the two logits at the clean image, above 0; see `median_logit_margin`.
        threat: the ball around the image.
        separation: distance of the inner points from the boundary of the ball, as a share of eps.
        inner, boundary: number of points of each kind.
        forwards: forward passes over which features are averaged; above 1 only if the defense is randomized.
        chunk: points in one forward pass.
        generator: draws the points.
    """
    image = restriction.image

    def features(points: Tensor) -> Tensor:
        return _mean_features(oracle, linear, restriction(points), forwards, chunk)

    # One half of the inner points is at the boundary of a smaller ball, and the other half anywhere inside it.
    radii = torch.rand(inner, generator=generator).clamp_min_(torch.arange(inner) % 2).to(image) * (1 - separation)
    inside = image + per_image(radii, image) * (restriction.corners(inner, threat, generator) - image)
    inner_features = features(torch.cat([image, inside]))
    candidates = restriction.corners(boundary, threat, generator)
    found = _discriminant(inner_features, features(candidates))
    if found is None:
        return None
    chosen, centre, direction = found
    example, example_score = search(
        lambda points: (features(points) - centre) @ direction, restriction, candidates[chosen][None], threat
    )
    clean_score = float((inner_features[0] - centre) @ direction)
    closeness = CLOSENESS if forwards == 1 else _CLOSENESS_RANDOMIZED
    threshold = clean_score + closeness * (example_score - clean_score)
    if not (math.isfinite(threshold) and example_score > threshold > clean_score):
        return None
    scale = clean_logit_margin / (threshold - clean_score)
    head = BinaryHead(centre.float(), (scale * direction).float(), scale * threshold)
    return BinarizedClassifier(head, linear, restriction, example)


def _discriminant(inner: Tensor, candidates: Tensor) -> tuple[int, Tensor, Tensor] | None:
    """Index of the farthest candidate, centre of the inner points, and the direction that separates them.

    Solved in the space of the points, not of the features, which may be many more (Woodbury's identity).
    """
    centre = inner.mean(0)
    deviations = (inner - centre) / (len(inner) - 1) ** 0.5
    offsets = candidates - centre
    variance = float(deviations.square().sum() / deviations.shape[1])
    if not (math.isfinite(variance) and bool(offsets.isfinite().all())):
        return None
    ridge = max(variance, 1e-30)  # all inner points may have the same features
    gram = deviations @ deviations.T
    gram.diagonal().add_(ridge)
    directions = (offsets - torch.linalg.solve(gram, deviations @ offsets.T).T @ deviations) / ridge
    squares = (offsets * directions).sum(1)
    chosen = int(squares.argmax())
    distance = float(squares[chosen])
    if not (math.isfinite(distance) and distance > 0):
        return None
    return chosen, centre, directions[chosen] / distance**0.5
