"""The binarization test of one image: embed an adversarial example, and see whether the attack finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.protocol import AttackFunction
from pytest_gradmask.binarization.classifier import (
    BinarizedClassifier,
    binarized_oracle,
    fit_binarized_classifier,
)
from pytest_gradmask.binarization.restriction import restricted_to_cells
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.execution.batching import out_of_memory
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel

Outcome = Literal["passed", "failed", "trivial", "unseparable"]

#: Least number of random points in the control of each image, for attacks that make fewer queries.
_CONTROL = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """The result for one image.

    Attributes:
        outcome: ``"passed"``: the attack found class 1 inside the ball. ``"failed"``: it did not. ``"trivial"``: random
            points find class 1 as well. ``"unseparable"``: no adversarial example could be embedded.
        invalid: whether the attack returned an image outside of the ball or the bounds, or with values that are not
            finite.
        on_logits: whether the new layer takes the logits as features.
        queries: forward passes of the attack.
    """

    outcome: Outcome
    invalid: bool = False
    on_logits: bool = False
    queries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTest:
    """The settings of the test, which are the same for all images.

    Attributes:
        oracle: the defense itself.
        logit_margins: the layers that a head may replace, in the order to try them, with the median logit margin of
            each. None stands for a head on the logits.

    The others are those of `binarization_test` and `fit_binarized_classifier`.
    """

    defense: Defense
    stream: RandomStream
    oracle: Oracle
    logit_margins: Mapping[nn.Linear | None, float]
    through: nn.Module
    threat: ThreatModel
    separation: float
    inner: int
    boundary: int
    forwards: int
    chunk: int

    def run(self, attack: AttackFunction, image: Tensor, generator: torch.Generator) -> ImageResult:
        """Embed an adversarial example for one image, attack it, and try as many random points as a control."""
        classifier = self.fit(image, generator)
        if classifier is None:
            return ImageResult(outcome="unseparable")
        oracle = self.binarized(self.defense.model, classifier)
        attacked = self.binarized(self.through, classifier)
        x_adv = _run_attack(attack, attacked, image, self.threat, generator)
        valid = bool(self.threat.contains(x_adv, image))
        control = classifier.restriction.corners(max(attacked.forwards, _CONTROL), self.threat, generator)
        if any(self.is_class_1(oracle, control)):
            outcome: Outcome = "trivial"
        else:
            outcome = "passed" if valid and self.is_class_1(oracle, x_adv)[0] else "failed"
        return ImageResult(
            outcome=outcome, invalid=not valid, on_logits=classifier.linear is None, queries=attacked.forwards
        )

    def fit(self, image: Tensor, generator: torch.Generator) -> BinarizedClassifier | None:
        """Embed an adversarial example; None if that fails.

        The first choices are a new last linear layer, and one kind of patterns at random. Where they fail, because
        noise hides the example or the features do not separate it, the others are tried.
        """
        first = bool(torch.rand((), generator=generator) < 0.5)
        for linear in self.logit_margins:
            for smooth in (first, not first):
                classifier = self.fit_to(linear, image, generator, smooth=smooth)
                if classifier is None:
                    continue
                # Evaluated again, with new noise and in the same way as the result of an attack.
                points = torch.cat([image, classifier.example])
                if self.is_class_1(self.binarized(self.defense.model, classifier), points) == [False, True]:
                    return classifier
        return None

    def fit_to(
        self, linear: nn.Linear | None, image: Tensor, generator: torch.Generator, *, smooth: bool
    ) -> BinarizedClassifier | None:
        """Embed an adversarial example with one kind of patterns; see `fit_binarized_classifier`."""
        return fit_binarized_classifier(
            self.oracle,
            linear,
            restricted_to_cells(image, self.threat, generator, smooth=smooth),
            clean_logit_margin=self.logit_margins[linear],
            threat=self.threat,
            separation=self.separation,
            inner=self.inner,
            boundary=self.boundary,
            forwards=self.forwards,
            chunk=self.chunk,
            generator=generator,
        )

    def binarized(self, model: nn.Module, classifier: BinarizedClassifier) -> Oracle:
        return binarized_oracle(model, classifier, self.stream, self.defense.outputs)

    def is_class_1(self, oracle: Oracle, images: Tensor) -> list[bool]:
        """Whether each image is class 1 in more than half of the forward passes."""
        counts = torch.zeros(len(images), device=images.device)
        with torch.no_grad():
            for chunk in torch.arange(len(images), device=images.device).split(self.chunk):
                label = torch.zeros(len(chunk), dtype=torch.long, device=images.device)
                for _ in range(self.forwards):
                    counts[chunk] += logit_margin(oracle(images[chunk]), label) > 0
        return (counts * 2 > self.forwards).tolist()


def _run_attack(
    attack: AttackFunction, model: Oracle, image: Tensor, threat: ThreatModel, generator: torch.Generator
) -> Tensor:
    label = torch.zeros(1, dtype=torch.long, device=image.device)
    try:
        x_adv: object = attack(model, image.clone(), label, threat=threat, generator=generator)
    except GradmaskError:
        raise
    except Exception as error:  # the attack is not ours
        if out_of_memory(error):
            raise
        raise InputError(f"attack: raised {type(error).__name__}: {error}") from error
    if not isinstance(x_adv, Tensor) or x_adv.shape != image.shape:
        shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise InputError(f"attack: returned {shape} for images of shape {tuple(image.shape)}; return perturbed images")
    return x_adv.detach().to(image)
