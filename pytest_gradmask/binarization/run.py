"""A unit test for attacks: does an attack find an adversarial example that is known to be there?

The binarization test of Zimmermann, Brendel, Tramèr and Carlini, "Increasing Confidence in Adversarial Robustness
Evaluations" (NeurIPS 2022). Each image gets a last layer of its own with two classes, fitted so that a
point on the boundary of the ball is class 1, and the image and points inside the ball are class 0. An attack that does
not find class 1 is too weak for this defense: that it fails on the defense itself shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.binarization.classifier import (
    BinarizedClassifier,
    last_linear,
    modified,
    on_sphere,
    plant,
    usual_margin,
)
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.probes.preflight import check_batch, check_defense, check_setting
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Proportion

Outcome = Literal["passed", "failed", "trivial", "unseparable"]
Attack = Callable[..., torch.Tensor]

#: Share of the planted examples that an attack has to find. A correct one finds them all; one in twenty is forgiven.
REQUIRED = 0.95
#: The bound from below that it takes besides: without it, one image would make a pass.
_LEAST = 0.5
#: Random points that every image's test has to withstand, even where the attack makes fewer queries.
_CONTROL = 50
_WATCHED = 16  # forwards in which the last linear layer of a randomized defense is looked for
_VOTES = 5  # forwards over which a randomized defense is averaged and judged
_CHUNK = 256  # points a forward gets


@dataclass(frozen=True, slots=True)
class BinarizationTest:
    """What an attack made of the examples planted for it.

    Attributes:
        outcomes: for each image ``"passed"`` (the attack found class 1 inside the ball), ``"failed"``, ``"trivial"``
            (random points find it as well, so that a pass would show nothing) or ``"unseparable"`` (no example could
            be planted).
        confidence: of each bound of ``rate``.
        invalid: images that the attack returned outside of the ball or the bounds, or not finite: not passed.
        on_logits: images whose two classes had to be told from the logits, not from the last linear layer's input.
        queries: most images that the attack passed forward for one image; as many random points, but at least 50,
            made the control.
    """

    outcomes: tuple[Outcome, ...]
    confidence: float
    invalid: int = 0
    on_logits: int = 0
    queries: int = 0

    @property
    def passed(self) -> int:
        """Images whose planted example the attack found."""
        return self.outcomes.count("passed")

    @property
    def tested(self) -> int:
        """Images that count: neither trivial nor unseparable."""
        return self.passed + self.outcomes.count("failed")

    @property
    def trivial(self) -> int:
        """Images that do not count because random points succeed, too."""
        return self.outcomes.count("trivial")

    @property
    def unseparable(self) -> int:
        """Images that do not count because no example could be planted."""
        return self.outcomes.count("unseparable")

    @property
    def rate(self) -> Proportion | None:
        """Share of the tested images that passed, with exact bounds; None where no image was tested."""
        return Proportion.of(self.passed, self.tested, self.confidence) if self.tested else None

    @property
    def ok(self) -> bool:
        """Whether the attack passes: it found at least 95 % of the examples, and surely more than half.

        A correct attack finds them all. That the *bound* is above 95 % would take 90 images without a miss
        at 99 % confidence; attacks that are broken find next to none, so a bound above one half tells them apart
        with 7 images, and a pass on fewer shows too little.
        """
        return self.rate is not None and self.rate.value >= REQUIRED and self.rate.low > _LEAST

    @property
    def fails(self) -> bool:
        """Whether the attack surely finds less than 95 %. Neither `ok` nor this: too few images to tell."""
        return self.rate is not None and self.rate.high < REQUIRED


def binarization_test(
    attack: Attack,
    defense: Defense | nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    threat: ThreatModel,
    generator: torch.Generator,
    through: nn.Module | None = None,
    gap: float = 0.05,
    inner: int = 200,
    boundary: int = 50,
    forwards: int | None = None,
    frozen: bool = False,
    confidence: float = 0.99,
) -> BinarizationTest:
    """Test an attack on a defense whose last layer is replaced, image by image, so that it can be broken.

    Image by image, because an attack may drop, repeat or reorder the images of a batch, and each has its own layer.

    Args:
        attack: ``attack(model, images, labels, *, threat, generator) -> images``; use `functools.partial` for the
            rest. It is given one image at a time, the label 0, and a model with two classes (so no loss that
            needs three logits).
        defense: a module from images to logits, or a `Defense`.
        images: float32, N x C x H x W, inside the bounds; 8 are enough to tell a broken attack, 7 the fewest.
        labels: integers, N. The new layers' margins are as large as those to these labels usually are.
        threat: where the attack may search.
        generator: draws all points, and seeds defense and attack; a CPU generator.
        through: what the attack is given in place of the defense, made of the defense's own modules:
            ``bypassed(model, ...)`` for BPDA, a `Mixture` of members, ... Success is judged on the defense.
        gap: inner points keep this share of eps away from the boundary, in (0, 1).
        inner: points of each image that are class 0, at least 2.
        boundary: candidates for class 1, at least 1.
        forwards: over which features are averaged and images judged, at least 1; by default 5 for a randomized
            defense and 1 otherwise.
        frozen: hold a randomized defense at one draw of its random numbers, the same for every image and forward. For
            one whose noise drowns whatever is planted; a defense that draws from a generator of its own cannot be held.
        confidence: of each bound of the pass rate, in (0.5, 1).

    Raises:
        InputError, DefenseError: the input cannot be tested; the message says what to change. What the attack
            raises is passed on.
    """
    _check_arguments(attack, generator, through, gap, inner, boundary, forwards, confidence)
    defense = as_defense(defense)
    check_batch(images, labels, threat)
    images, labels = images.detach(), labels.detach().long()
    models = [defense.model, *defense.members, *defense.sources, *([] if through is None else [through])]
    trials: list[_Trial] = []
    with no_trace(models, images.device):
        stream = RandomStream(int(torch.randint(2**31, (1,), generator=generator)), images.device)
        look = Oracle(defense.model, stream, defense.outputs)
        with stream.active():
            randomized = check_defense(defense, look, images, labels).randomized
        frozen = frozen and randomized
        forwards = forwards or (_VOTES if randomized and not frozen else 1)
        watched = _WATCHED if randomized else 1
        # The numbers that a batch draws differ from image to image: where they are frozen, each is a batch of its own.
        chunk = 1 if frozen else _CHUNK
        linear = last_linear(defense.model, stream, defense.outputs, images[:2], watched)
        with stream.frozen() if frozen else nullcontext():
            places = {place: usual_margin(look, place, images, labels, forwards, chunk) for place in (linear, None)}
            bench = _Bench(
                defense, stream, look, places, through or defense.model, threat, gap, inner, boundary, forwards, chunk
            )
            for image in images.split(1):
                # Draws of its own for each image: what an attack draws on one does not change the next one's test.
                own = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
                planted = bench.plant(image, own)
                trials.append(_Trial("unseparable") if planted is None else bench.run(attack, planted, image, own))
    return BinarizationTest(
        outcomes=tuple(trial.outcome for trial in trials),
        confidence=confidence,
        invalid=sum(trial.invalid for trial in trials),
        on_logits=sum(trial.on_logits for trial in trials),
        queries=max(trial.queries for trial in trials),
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One image; attributes as those of `BinarizationTest`."""

    outcome: Outcome
    invalid: bool = False
    on_logits: bool = False
    queries: int = 0


@dataclass(frozen=True, slots=True)
class _Bench:
    """What stays the same for all images.

    ``places`` are the layers whose place a head may take, in the order to try them, with the usual margin there.
    """

    defense: Defense
    stream: RandomStream
    look: Oracle
    places: Mapping[nn.Linear | None, float]
    through: nn.Module
    threat: ThreatModel
    gap: float
    inner: int
    boundary: int
    forwards: int
    chunk: int

    def plant(self, image: torch.Tensor, generator: torch.Generator) -> BinarizedClassifier | None:
        """Plant an example in place of the last linear layer or else behind the logits; None where neither can be."""
        for place, size in self.places.items():
            planted = plant(
                self.look,
                place,
                image,
                size=size,
                threat=self.threat,
                gap=self.gap,
                inner=self.inner,
                boundary=self.boundary,
                forwards=self.forwards,
                chunk=self.chunk,
                generator=generator,
            )
            # Looked at again, alone and with fresh noise: it has to be an example in the way an attack is judged.
            if planted and self.class_1(self.judge(planted), torch.cat([image, planted.example])) == [False, True]:
                return planted
        return None

    def judge(self, planted: BinarizedClassifier) -> Oracle:
        return modified(self.defense.model, planted, self.stream, self.defense.outputs)

    def run(
        self, attack: Attack, planted: BinarizedClassifier, image: torch.Tensor, generator: torch.Generator
    ) -> _Trial:
        """Attack one image, and as often try random points in its stead."""
        judge = self.judge(planted)
        given = modified(self.through, planted, self.stream, self.defense.outputs)
        returned = _attacked(attack, given, image, self.threat, generator)
        valid = bool(self.threat.contains(returned, image))
        control = on_sphere(image, max(given.forwards, _CONTROL), self.threat, generator)
        if any(self.class_1(judge, control)):
            outcome: Outcome = "trivial"
        else:
            outcome = "passed" if valid and self.class_1(judge, returned)[0] else "failed"
        return _Trial(outcome, not valid, planted.linear is None, given.forwards)

    def class_1(self, oracle: Oracle, images: torch.Tensor) -> list[bool]:
        """Whether each image is class 1 in more than half of the forwards, as an audit judges what is broken."""
        predictions = torch.zeros(len(images), device=images.device)
        with torch.no_grad():
            for chunk in torch.arange(len(images), device=images.device).split(self.chunk):
                label = torch.zeros(len(chunk), dtype=torch.long, device=images.device)
                for _ in range(self.forwards):
                    predictions[chunk] += logit_margin(oracle(images[chunk]), label) > 0
        return (predictions * 2 > self.forwards).tolist()


def _attacked(
    attack: Attack, model: Oracle, image: torch.Tensor, threat: ThreatModel, generator: torch.Generator
) -> torch.Tensor:
    label = torch.zeros(1, dtype=torch.long, device=image.device)
    returned = attack(model, image.clone(), label, threat=threat, generator=generator)
    if not isinstance(returned, torch.Tensor) or returned.shape != image.shape:
        shape = tuple(returned.shape) if isinstance(returned, torch.Tensor) else type(returned).__name__
        raise InputError(f"attack: returned {shape} for images of shape {tuple(image.shape)}; return perturbed images")
    return returned.detach().to(image)


def _check_arguments(
    attack: object,
    generator: object,
    through: object,
    gap: float,
    inner: int,
    boundary: int,
    forwards: int | None,
    confidence: float,
) -> None:
    if not callable(attack):
        raise InputError(f"attack={attack!r}: must be a function attack(model, images, labels, *, threat, generator)")
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise InputError(f"generator={generator!r}: must be a CPU generator, as in torch.Generator().manual_seed(0)")
    if through is not None and not isinstance(through, nn.Module):
        raise InputError(f"through={through!r}: must be a torch.nn.Module, such as bypassed(model, ...), or None")
    if not 0 < gap < 1:
        raise InputError(f"gap={gap!r}: must be a share of eps between 0 and 1, such as 0.05")
    for name, value, least in (("inner", inner, 2), ("boundary", boundary, 1), ("forwards", forwards, 1)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{name}={value!r}: must be a whole number of at least {least}")
    check_setting(confidence)
