"""How often verdicts on randomized defenses are wrong: simulated audits of chances and votes, no model."""

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
_SEEN = 4  # forwards by which the placebo's restarts are compared: an attack averages over few
#: Chances of a right answer after the gradient attacks: nearly settled, and all over the place.
_CHANCES = {"settled": (0.1, 0.05), "doubtful": (1.0, 1.0)}

Chances = NDArray[np.float64]


def error_rates(audits: int = AUDITS) -> Iterator[dict[str, Any]]:
    """Rates of verdicts, one row for each size, kind of chances, placebo effect and gap.

    Each of four adaptive attacks lowers an image's chance, by a share drawn uniformly, as often as the effect says, and
    so does each of as many restarts of the placebo. Of four points, pilots choose the worst; a masked image gets no
    right answer at any adaptive point. Attacks are judged once, at the end, with a quarter of the error.
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
    # The mean chance of a masked image is that of any, so that the true gap is its share of the images times that.
    masked = generator.random(images) < gap * (shape[0] + shape[1]) / shape[0]
    adaptive = _lowered(generator, before, effect)
    adaptive[:, masked] = 0.0
    placebo = _lowered(generator, before, effect)
    restart = placebo[generator.binomial(_SEEN, placebo).argmin(0), np.arange(images)]
    gradient_pilot, gradient = _judged(generator, before, variance)
    beside = [(gradient_pilot, gradient), _judged(generator, restart, variance)]
    against = [(gradient_pilot, gradient), *(_judged(generator, each, variance) for each in adaptive)]
    differences = (_worst(beside) - _worst(against)).tolist()
    if (
        differences
        and sum(differences) / images > margin
        and _ATTACKS * mean_p(differences, 0.0, -1.0) < 1 - CONFIDENCE
    ):
        return "MASKED"
    extra = float((gradient - _worst(beside)).mean())
    turned = [-each for each in differences]
    excluded = extra <= margin and mean_p(turned, -margin, -1.0) < 1 - CONFIDENCE
    return "NOT_MASKED" if excluded else "INCONCLUSIVE"


def _lowered(generator: np.random.Generator, chances: Chances, effect: float) -> Chances:
    """Chances at the points of four attacks, attacks x images."""
    shape = _ATTACKS, len(chances)
    return np.where(generator.random(shape) < effect, generator.random(shape), 1.0) * chances


def _judged(generator: np.random.Generator, chances: Chances, variance: float) -> tuple[Chances, Chances]:
    """Pilot and what counts, of each image."""
    pilot = generator.binomial(_PILOT, chances)
    needed = np.array([samples_needed(won / _PILOT, _PILOT, variance) for won in range(_PILOT + 1)])
    samples = needed[pilot]
    return pilot / _PILOT, generator.binomial(samples, chances) / samples


def _worst(points: list[tuple[Chances, Chances]]) -> Chances:
    pilots, correct = (np.stack(each) for each in zip(*points, strict=True))
    worst: Chances = correct[pilots.argmin(0), np.arange(pilots.shape[1])]
    return worst
