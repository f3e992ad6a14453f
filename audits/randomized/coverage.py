"""Whether the intervals of a randomized defense's accuracy hold what a thousand votes say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from audits.defenses.entry import Entry
from pytest_gradmask import ThreatModel, load_model
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import known_models
from pytest_gradmask.defense import as_defense
from pytest_gradmask.execution.isolation import no_trace
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.randomized.prediction import Sampler, draws_shared
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.stats import accuracy_bounds

TRUTH = 1000  # votes that count as the truth about an image
REPETITIONS = 200
IMAGES = 40  # of each repetition, drawn from the pool
CONFIDENCE = 0.95
#: Radii of the points in the pool, in 255ths: the chance of a right answer falls somewhere on the way.
_RADII = (0, 1, 2, 4, 8)
_PILOT, _VARIANCE = 10, 0.01


def coverage(
    entry: Entry,
    data: Dataset,
    *,
    repetitions: int = REPETITIONS,
    truth: int = TRUTH,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Judge images drawn from a pool, again and again, and compare the intervals with the pool's true chances.

    The pool has each image of ``data`` once: a fifth of them clean, the others after PGD with one of four radii.

    Returns:
        Plain data: how often each bound held, of the accuracy in ``repetitions`` tries and of single images' chances
        in all their judgements, and the confidence at which they should.
    """
    defense = as_defense(entry.build(load_model))
    labels = entry.labels(data.labels)
    with no_trace(known_models(defense), data.images.device):
        look = Oracle(defense.model, RandomStream(subseed(seed, "coverage"), data.images.device), defense.outputs)
        pool = _pool(look, data.images, labels, seed)
        one_by_one = draws_shared(look, data.images[:1])
        progress(f"{truth} votes on each of {len(pool)} points")
        # After one vote, the chance of another is guessed as 1/3 or 2/3: every point gets the same number.
        chances = [
            predictions.correct for predictions in Sampler(1, 2 / 9 / truth, one_by_one).predict(look, pool, labels)
        ]
        expected = sum(chances) / len(chances)
        sampler = Sampler(_PILOT, _VARIANCE, one_by_one)
        generator = torch.Generator().manual_seed(subseed(seed, "repetitions"))
        low = high = image_low = image_high = votes_taken = 0
        for number in range(repetitions):
            if number % 20 == 0:
                progress(f"repetition {number} of {repetitions}")
            drawn = torch.randint(len(pool), (IMAGES,), generator=generator)
            predictions = sampler.predict(look, pool[drawn], labels[drawn])
            bounds = accuracy_bounds([found.correct for found in predictions], CONFIDENCE)
            low += bounds[0] <= expected
            high += expected <= bounds[1]
            votes_taken += sum(found.number for found in predictions)
            for index, found in zip(drawn.tolist(), predictions, strict=True):
                interval = found.interval(CONFIDENCE)
                image_low += interval[0] <= chances[index]
                image_high += chances[index] <= interval[1]
    judged = repetitions * IMAGES
    return {
        "defense": entry.name,
        "expected_accuracy": expected,
        "doubtful": sum(0.05 < chance < 0.95 for chance in chances) / len(chances),
        "confidence": CONFIDENCE,
        "repetitions": repetitions,
        "truth": truth,
        "images": IMAGES,
        "pool": len(pool),
        "accuracy": [low / repetitions, high / repetitions],
        "image": [image_low / judged, image_high / judged],
        "samples": votes_taken / judged,
        "one_by_one": one_by_one,
        "seed": seed,
    }


def _pool(look: Oracle, images: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
    pool = images.clone()
    generator = torch.Generator().manual_seed(subseed(seed, "pool"))
    for number, radius in enumerate(_RADII):
        if radius:
            own = torch.arange(number, len(images), len(_RADII))
            threat = ThreatModel(radius / 255)
            pool[own] = pgd(look, images[own], labels[own], threat=threat, steps=5, eot=2, generator=generator)
    return pool
