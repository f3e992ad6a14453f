"""How often verdicts on randomized defenses are wrong: simulated audits, without any model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_gradmask.auditing.research import mean_p, samples_needed

AUDITS = 10_000
CONFIDENCE = 0.99
#: Default margins of the budgets.
MARGINS = {20: 0.25, 200: 0.05}
_ATTACKS = 4
_PILOT = 20
_RESTART_FORWARDS = 4  # by which the placebo's restarts are compared, as an attack averages over few forwards
#: Beta distributions of the probability of a correct prediction after the gradient attacks: near 0 or 1, or anywhere.
_CHANCES = {"clear": (0.1, 0.05), "doubtful": (1.0, 1.0)}

Chances = NDArray[np.float64]


def error_rates(audits: int = AUDITS) -> Iterator[dict[str, Any]]:
    """Rates of verdicts, one row for each size, kind of chances, placebo effect and gap.

    Each of four adaptive attacks, and each of four restarts of the placebo, lowers the probability of a correct
    prediction of some images, by a share that is drawn uniformly. The placebo effect is the share of these images. The
    pilot chooses the worst of the four images that the attacks return. A masked image is never predicted correctly
    after an adaptive attack. There is one analysis at the end, with a quarter of the error.
    """
    for number, (images, (kind, shape), effect, gap) in enumerate(
        product(MARGINS, _CHANCES.items(), (0.0, 0.05), (0.0, 0.2, 0.4))
    ):
        generator = np.random.default_rng(number)
        counts = {"MASKED": 0, "NOT_MASKED": 0, "INCONCLUSIVE": 0}
        for _ in range(audits):
            counts[_verdict(generator, images, shape, effect, gap)] += 1
        yield {
            "images": images, "chances": kind, "effect": effect, "gap": gap, "audits": audits,
            "margin": MARGINS[images], **counts,
        }  # fmt: skip


def _verdict(generator: np.random.Generator, images: int, shape: tuple[float, float], effect: float, gap: float) -> str:
    margin = MARGINS[images]
    variance = images * (margin / 10) ** 2
    before = generator.beta(*shape, images)
    # Masked images have the same mean probability as the others. The true gap is the product of it and their share.
    masked = generator.random(images) < gap * (shape[0] + shape[1]) / shape[0]
    adaptive = _lowered(generator, before, effect)
    adaptive[:, masked] = 0.0
    placebo = _lowered(generator, before, effect)
    restart = placebo[generator.binomial(_RESTART_FORWARDS, placebo).argmin(0), np.arange(images)]
    gradient_pilot, gradient = _predicted(generator, before, variance)
    with_placebo = [(gradient_pilot, gradient), _predicted(generator, restart, variance)]
    with_adaptive = [(gradient_pilot, gradient), *(_predicted(generator, each, variance) for each in adaptive)]
    differences = (_worst(with_placebo) - _worst(with_adaptive)).tolist()
    if (
        differences
        and sum(differences) / images > margin
        and _ATTACKS * mean_p(differences, 0.0, -1.0) < 1 - CONFIDENCE
    ):
        return "MASKED"
    extra = float((gradient - _worst(with_placebo)).mean())
    reversed_signs = [-each for each in differences]
    excluded = extra <= margin and mean_p(reversed_signs, -margin, -1.0) < 1 - CONFIDENCE
    return "NOT_MASKED" if excluded else "INCONCLUSIVE"


def _lowered(generator: np.random.Generator, chances: Chances, effect: float) -> Chances:
    """Probabilities of a correct prediction after each of four attacks, attacks x images."""
    shape = _ATTACKS, len(chances)
    return np.where(generator.random(shape) < effect, generator.random(shape), 1.0) * chances


def _predicted(generator: np.random.Generator, chances: Chances, variance: float) -> tuple[Chances, Chances]:
    """The share of correct predictions of each image in the pilot, and in the samples that count."""
    pilot = generator.binomial(_PILOT, chances)
    needed = np.array([samples_needed(correct / _PILOT, _PILOT, variance) for correct in range(_PILOT + 1)])
    samples = needed[pilot]
    return pilot / _PILOT, generator.binomial(samples, chances) / samples


def _worst(predictions: list[tuple[Chances, Chances]]) -> Chances:
    pilots, correct = (np.stack(each) for each in zip(*predictions, strict=True))
    worst: Chances = correct[pilots.argmin(0), np.arange(pilots.shape[1])]
    return worst
