"""Whether the intervals for a randomized defense's accuracy contain the accuracy measured with a thousand samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from audits.defenses.entry import Entry
from pytest_gradmask import Dataset, ThreatModel, load_model, pgd
from pytest_gradmask.auditing.research import (
    Oracle,
    RandomStream,
    Sampler,
    accuracy_bounds,
    as_defense,
    draws_shared,
    known_models,
    no_trace,
    subseed,
)

TRUTH = 1000  # samples that count as the truth about an image
REPETITIONS = 200
IMAGES = 40  # of each repetition, drawn from the pool
CONFIDENCE = 0.95
#: Radii of the attacks on the pool, in 255ths: the probability of a correct prediction decreases with the radius.
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
    """Predict images that are drawn from a pool, many times, and compare the intervals with the true probabilities.

    The pool has each image of ``data`` once: a fifth of them clean, the others after PGD with one of four radii.

    Returns:
        Plain data: how often each bound of the accuracy is correct in ``repetitions`` repetitions, how often each bound
        for a single image is correct, and the confidence of the bounds.
    """
    defense = as_defense(entry.build(load_model))
    labels = entry.labels(data.labels)
    with no_trace(known_models(defense), data.images.device):
        oracle = Oracle(defense.model, RandomStream(subseed(seed, "coverage"), data.images.device), defense.outputs)
        pool = _pool(oracle, data.images, labels, seed)
        one_by_one = draws_shared(oracle, data.images[:1])
        progress(f"{truth} samples of each of {len(pool)} images")
        # After a pilot of one sample, the probability is estimated as 1/3 or 2/3: every image gets the same number.
        chances = [
            predictions.correct for predictions in Sampler(1, 2 / 9 / truth, one_by_one).predict(oracle, pool, labels)
        ]
        expected = sum(chances) / len(chances)
        sampler = Sampler(_PILOT, _VARIANCE, one_by_one)
        generator = torch.Generator().manual_seed(subseed(seed, "repetitions"))
        low = high = image_low = image_high = samples = 0
        for number in range(repetitions):
            if number % 20 == 0:
                progress(f"repetition {number} of {repetitions}")
            drawn = torch.randint(len(pool), (IMAGES,), generator=generator)
            predictions = sampler.predict(oracle, pool[drawn], labels[drawn])
            bounds = accuracy_bounds([found.correct for found in predictions], CONFIDENCE)
            low += bounds[0] <= expected
            high += expected <= bounds[1]
            samples += sum(found.number for found in predictions)
            for index, found in zip(drawn.tolist(), predictions, strict=True):
                interval = found.interval(CONFIDENCE)
                image_low += interval[0] <= chances[index]
                image_high += chances[index] <= interval[1]
    predicted = repetitions * IMAGES
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
        "image": [image_low / predicted, image_high / predicted],
        "samples": samples / predicted,
        "one_by_one": one_by_one,
        "seed": seed,
    }


def _pool(oracle: Oracle, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    pool = images.clone()
    generator = torch.Generator().manual_seed(subseed(seed, "pool"))
    for number, radius in enumerate(_RADII):
        if radius:
            rows = torch.arange(number, len(images), len(_RADII))
            threat = ThreatModel(radius / 255)
            pool[rows] = pgd(oracle, images[rows], labels[rows], threat=threat, steps=5, eot=2, generator=generator)
    return pool
