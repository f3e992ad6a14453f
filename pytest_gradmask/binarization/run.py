"""The binarization test of attacks: does an attack find an adversarial example that is known to exist?

After Zimmermann, Brendel, Tramèr and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS
2022, arXiv:2206.13991). For each image, the last layer of the defense is replaced by one with two classes. It is fitted
so that one point on the boundary of the ball is class 1, while the image and points inside the ball are class 0. An
attack that does not find class 1 is too weak for this defense: its failure on the defense itself shows nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.protocol import AttackFunction
from pytest_gradmask.binarization.classifier import find_last_linear, median_logit_margin
from pytest_gradmask.binarization.single_image import ImageResult, ImageTest, Outcome
from pytest_gradmask.checks import as_number, check_is, check_whole, is_a, shown
from pytest_gradmask.defense import Defense, as_defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.probes.preflight import check_ball, check_batch, check_defense, check_setting
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Proportion

#: Share of the embedded adversarial examples that an attack has to find. A correct one finds all; 5 % may be missed.
REQUIRED = 0.95
#: Value that the lower bound of this share must exceed. Without it, one image would be enough for a pass.
_LEAST = 0.5
_OBSERVED = 16  # forward passes in which the last linear layer of a randomized defense is searched for
_RANDOMIZED_FORWARDS = 5  # forward passes over which a randomized defense is averaged
_CHUNK = 256  # points in one forward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class BinarizationTest:
    """The result of a binarization test.

    Attributes:
        outcomes: one for each image. ``"passed"``: the attack found class 1 inside the ball. ``"failed"``: it did not.
            ``"trivial"``: random points find class 1 as well, so that a pass would show nothing. ``"unseparable"``: no
            adversarial example could be embedded.
        confidence: of each bound of ``rate``.
        invalid: number of images that the attack returned outside of the ball or the bounds, or with values that are
            not finite. They have not passed.
        on_logits: number of images whose new layer takes the logits as features, not the last linear layer's input.
        queries: the most forward passes of the attack for one image. The control of the image used as many random
            points, but at least 50.
    """

    outcomes: tuple[Outcome, ...]
    confidence: float
    invalid: int = 0
    on_logits: int = 0
    queries: int = 0

    @property
    def passed(self) -> int:
        """Number of images whose embedded adversarial example the attack found."""
        return self.outcomes.count("passed")

    @property
    def tested(self) -> int:
        """Number of images that count: neither trivial nor unseparable."""
        return self.passed + self.outcomes.count("failed")

    @property
    def trivial(self) -> int:
        """Number of images that do not count because random points succeed, too."""
        return self.outcomes.count("trivial")

    @property
    def unseparable(self) -> int:
        """Number of images that do not count because no adversarial example could be embedded."""
        return self.outcomes.count("unseparable")

    @property
    def rate(self) -> Proportion | None:
        """Share of the tested images that passed, with exact bounds; None if no image was tested."""
        return Proportion.of(self.passed, self.tested, self.confidence) if self.tested else None

    @property
    def ok(self) -> bool:
        """Whether the attack passes: it found at least 95 % of the examples, and certainly more than half.

        A correct attack finds them all. A *bound* above 95 % would take 90 images without a miss at 99 % confidence.
        But broken attacks find almost none, so a bound above one half is enough to recognise them. This takes 7
        images; fewer are too few for a pass.
        """
        return self.rate is not None and self.rate.value >= REQUIRED and self.rate.low > _LEAST

    @property
    def fails(self) -> bool:
        """Whether the attack certainly finds less than 95 %. If neither this nor `ok` is true, images are too few."""
        return self.rate is not None and self.rate.high < REQUIRED


def binarization_test(
    attack: AttackFunction,
    defense: Defense | nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    generator: torch.Generator,
    through: nn.Module | None = None,
    separation: float = 0.05,
    inner: int = 200,
    boundary: int = 50,
    forwards: int | None = None,
    frozen: bool = False,
    confidence: float = 0.99,
) -> BinarizationTest:
    """Test an attack on a defense whose last layer is replaced, image by image, so that it can be broken.

    The attack gets one image at a time, because each image has its own layer, and an attack may drop, repeat or
    reorder the images of a batch.

    Args:
        attack: ``attack(model, images, labels, *, threat, generator) -> images``; use `functools.partial` for further
            arguments. It gets one image at a time, the label 0, and a model with two classes, so its loss must not
            need three logits.
        defense: a module from images to logits, or a `Defense`.
        images: float32, N x C x H x W, inside the bounds. 8 are enough to recognise a broken attack, and 7 the fewest
            for a pass.
        labels: integers, N. The logit margins of the new layers are as large as those of these labels usually are.
        threat: where the attack may search.
        generator: draws all points, and seeds defense and attack; a CPU generator.
        through: the model that the attack gets instead of the defense, made from the defense's own modules:
            ``bypassed(model, ...)`` for BPDA, a `Mixture` of members, ... Success is evaluated on the defense.
        separation: distance of the inner points from the boundary of the ball, as a share of eps, in (0, 1).
        inner: number of points of each image that are class 0, at least 2.
        boundary: number of candidates for class 1, at least 1.
        forwards: forward passes over which features are averaged and images are evaluated, at least 1; by default 5
            for a randomized defense and 1 otherwise.
        frozen: use the same random numbers of a randomized defense for every image and forward pass. This is for a
            defense whose noise hides every embedded example. It has no effect on a defense with a random generator of
            its own.
        confidence: of each bound of the pass rate, in (0.5, 1).

    Raises:
        InputError, DefenseError: the input cannot be tested; the message says what to change. So does one for an
            attack that raises.
    """
    _check_arguments(
        attack=attack,
        generator=generator,
        through=through,
        separation=separation,
        inner=inner,
        boundary=boundary,
        forwards=forwards,
        frozen=frozen,
        confidence=confidence,
    )
    defense = as_defense(defense)
    check_ball(threat)
    check_batch(images, labels, threat)
    images, labels = images.detach(), labels.detach().long()
    models = [defense.model, *defense.members, *defense.sources, *([] if through is None else [through])]
    results: list[ImageResult] = []
    with no_trace(models, images.device):
        stream = RandomStream(int(torch.randint(2**31, (1,), generator=generator)), images.device)
        oracle = Oracle(defense.model, stream, defense.outputs)
        with stream.active():
            randomized = check_defense(defense, oracle, images, labels).randomized
        frozen = frozen and randomized
        forwards = forwards or (_RANDOMIZED_FORWARDS if randomized and not frozen else 1)
        # A batch draws other numbers for each of its images. If they are frozen, each image is a batch of its own.
        chunk = 1 if frozen else _CHUNK
        linear = find_last_linear(defense.model, stream, defense.outputs, images[:2], _OBSERVED if randomized else 1)
        with stream.frozen() if frozen else nullcontext():
            test = ImageTest(
                defense=defense,
                stream=stream,
                oracle=oracle,
                logit_margins={
                    layer: median_logit_margin(oracle, layer, images, labels, forwards, chunk)
                    for layer in (linear, None)
                },
                through=through or defense.model,
                threat=threat,
                separation=separation,
                inner=inner,
                boundary=boundary,
                forwards=forwards,
                chunk=chunk,
            )
            for image in images.split(1):
                # A generator for each image: the random numbers of one attack do not change the next image's test.
                seed = int(torch.randint(2**62, (1,), generator=generator))
                results.append(test.run(attack, image, torch.Generator().manual_seed(seed)))
    return BinarizationTest(
        outcomes=tuple(result.outcome for result in results),
        confidence=confidence,
        invalid=sum(result.invalid for result in results),
        on_logits=sum(result.on_logits for result in results),
        queries=max(result.queries for result in results),
    )


def _check_arguments(
    *,
    attack: object,
    generator: object,
    through: object,
    separation: object,
    inner: object,
    boundary: object,
    forwards: object,
    frozen: object,
    confidence: float,
) -> None:
    if is_a(attack, type) or not callable(attack):
        raise InputError(
            f"attack={shown(attack)}: must be a function attack(model, images, labels, *, threat, generator)"
        )
    if not is_a(generator, torch.Generator) or generator.device.type != "cpu":  # type: ignore[attr-defined]
        raise InputError(
            f"generator={shown(generator)}: must be a CPU generator, as in torch.Generator().manual_seed(0)"
        )
    check_is("frozen", frozen, "True or False", bool)
    if through is not None and not is_a(through, nn.Module):
        raise InputError(f"through={shown(through)}: must be a torch.nn.Module, such as bypassed(model, ...), or None")
    if (share := as_number(separation)) is None or not 0 < share < 1:
        raise InputError(f"separation={shown(separation)}: must be a share of eps between 0 and 1, such as 0.05")
    for name, value, least in (("inner", inner, 2), ("boundary", boundary, 1), ("forwards", forwards, 1)):
        if value is not None or name != "forwards":
            check_whole(name, value, least)
    check_setting(confidence)
