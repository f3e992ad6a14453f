"""Simulated audits of randomized defenses whose chances differ between the candidate points of attacks.

Nothing is masked: each attack returns a candidate point for each image, and the chance of a correct answer there is the
image's own chance plus noise. The worst of many points therefore looks worse than the worst of a few, although nobody
adapted. `differences` draws what an audit measures, and `simulate` judges it by the audit's own test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audits.calibration.simulation import CONFIDENCE
from pytest_gradmask import AttackResult, Prediction
from pytest_gradmask.auditing.research import InterimAnalysis, mean_p

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RandomizedPopulation:
    """The images that a randomized defense classifies correctly, without masking.

    Attributes:
        placebo_runs: candidate points of the placebo. With fewer than ``attacks`` the comparison is unfair.
        attacks: adaptive attacks, each of which returns one candidate point.
        survival: share of images that survive the gradient attack; the others are never answered correctly.
        chance: mean chance of a correct answer at a candidate point of a survivor.
        clean: the same without an attack.
        between_images, between_points: standard deviations of this chance.
        samples: forwards that choose the worst point, and as many others that judge it.
    """

    placebo_runs: int
    attacks: int = 7
    survival: float = 0.6
    chance: float = 0.75
    clean: float = 0.95
    between_images: float = 0.1
    between_points: float = 0.1
    samples: int = 20


@dataclass(frozen=True, slots=True)
class Sampled:
    """Shares of correct answers at each point of each surviving image: point by image.

    The points: without an attack, of the gradient attack, of each adaptive attack, of each run of the placebo.
    """

    pilot: Floats
    correct: Floats


def draw(population: RandomizedPopulation, images: int, generator: np.random.Generator) -> Sampled:
    """One audit of so many images."""
    survivors = generator.binomial(images, population.survival)
    points = 1 + population.attacks + population.placebo_runs
    own = generator.normal(population.chance, population.between_images, survivors)
    attacked = generator.normal(own, population.between_points, (points, survivors))
    every = np.vstack([np.full(survivors, population.clean), attacked]).clip(0, 1)
    return Sampled(*(generator.binomial(population.samples, every) / population.samples for _ in range(2)))


def differences(population: RandomizedPopulation, sampled: Sampled, images: int, attacks: int) -> Floats:
    """For each image, its chance under the placebo minus that under the first so many adaptive attacks.

    The worst point is chosen by the pilot samples and judged by the others, as `verdict.results.chances` does.
    """
    runs = min(attacks, population.placebo_runs)
    first = 2 + population.attacks
    each = []
    for points in ([*range(2), *range(first, first + runs)], [*range(2 + attacks)]):
        worst = np.array(points)[sampled.pilot[points].argmin(0)]
        each.append(np.take_along_axis(sampled.correct, worst[None], 0)[0])
    survivors = each[0] - each[1]
    return np.append(survivors, np.zeros(images - len(survivors)))


def results(
    population: RandomizedPopulation, sampled: Sampled, images: int
) -> tuple[list[bool], dict[int, Prediction], list[AttackResult]]:
    """One audit as `decide` gets it: clean correctness, clean predictions, and results of all attacks."""
    survivors = range(sampled.pilot.shape[1])

    def at(point: int) -> dict[int, Prediction]:
        return {
            index: Prediction(
                float(sampled.pilot[point, index]), float(sampled.correct[point, index]), population.samples, True
            )
            for index in survivors
        }

    clean = at(0) | {index: Prediction(1.0, 1.0, population.samples, True) for index in range(len(survivors), images)}
    broken = {index: Prediction(0.0, 0.0, population.samples, False) for index in range(len(survivors), images)}
    adaptive = range(2, 2 + population.attacks)
    placebo = range(2 + population.attacks, len(sampled.pilot))
    worst = np.array(placebo)[sampled.pilot[list(placebo)].argmin(0)]
    by_placebo = {index: at(int(worst[index]))[index] for index in survivors}
    found = [AttackResult("apgd-eot", "gradient", predictions=at(1) | broken)]
    found += [AttackResult(f"adaptive-{point}", "adaptive", predictions=at(point)) for point in adaptive]
    return [True] * images, clean, [*found, AttackResult("placebo", "placebo", predictions=by_placebo)]


@dataclass(frozen=True, slots=True)
class RandomizedTally:
    """Of many audits, how many say ``MASKED``, with all attacks at once and after each; and the mean gap measured."""

    exhaustive: int
    in_turn: int
    gap: float


def simulate(
    population: RandomizedPopulation, images: int, audits: int, margin: float, seed: int = 0
) -> RandomizedTally:
    """Audits in which all attacks run on all images, and in turn: the audit ends after an attack if it is masked."""
    generator = np.random.default_rng(seed)
    exhaustive, in_turn, gaps = 0, 0, 0.0
    analysis, single = InterimAnalysis(images, after_each_attack=True), InterimAnalysis(images)
    for _ in range(audits):
        sampled = draw(population, images, generator)
        masked = []
        for attacks in range(1, population.attacks + 1):
            each = differences(population, sampled, images, attacks)
            share = analysis.lower_share(population.attacks, complete=attacks == population.attacks)
            p_value = mean_p(each.tolist(), 0.0, -1.0) if each.mean() > margin else 1.0
            masked.append(p_value < (1 - CONFIDENCE) * share)
        in_turn += any(masked)
        exhaustive += p_value < (1 - CONFIDENCE) * single.lower_share(population.attacks, complete=True)
        gaps += each.mean() / audits
    return RandomizedTally(exhaustive, in_turn, float(gaps))
