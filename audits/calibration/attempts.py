"""Simulated users who audit one defense again and again, until the verdict is the wrong one that they want.

Each audit is another attempt. The rule gives it a smaller share of the error (`verdict.interim.attempt_share`). As a
negative control, every audit counts as the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audits.calibration.populations import Counts, Population, draw, patterns
from audits.calibration.simulation import CONFIDENCE, audit_rule, evidence, in_turn
from pytest_gradmask.auditing.research import InterimAnalysis, plan_analyses

#: What a user audits next: new images alone, or all images so far with some more.
Next = Literal["new", "more"]


@dataclass(frozen=True, slots=True)
class Attempted:
    """Of many users, how many have had the wanted verdict.

    Attributes:
        users: how many.
        counted: after each attempt, where attempts share the error.
        uncounted: the same where each audit has the error of a first attempt.
    """

    users: int
    counted: list[int]
    uncounted: list[int]


def repeat(
    population: Population, sizes: Sequence[int], wanted: int, margin: float, users: int, seed: int, *, images: Next
) -> Attempted:
    """Audit until the verdict is the wanted one, or no attempt is left. No other verdict ends the series.

    Args:
        population: of the images that the defense classifies correctly.
        sizes: images of each attempt.
        wanted: a verdict of this population that is wrong, as a number in `simulation.VERDICTS`.
        margin: of the verdict.
        users: how many series to draw. Both rules judge the same images.
        seed: of the draws.
        images: of an attempt: ``"new"`` ones, in audits in turn, or ``"more"``, all at once: those of the attempt
            before, on which attacks do as they did, and new ones, so that attempts depend on each other.
    """
    generator = np.random.default_rng(seed)
    had = np.zeros((2, users), dtype=bool)
    after: list[list[int]] = [[], []]
    drawn = np.zeros((users, len(patterns(population).chance)), dtype=np.int64)
    for number, size in enumerate(sizes, 1):
        if images == "more":
            drawn = drawn + draw(population, size - int(drawn[0].sum()), users, generator)
        for which, attempt in enumerate((number, 1)):
            if images == "more":
                said = _at_once(population, drawn, margin, attempt)
            else:
                # The plans of two attempts differ, so each draws its own images: from the same state of the generator.
                said = _in_turn(population, size, margin, attempt, users, np.random.default_rng([seed, number]))
            had[which] |= said == wanted
            after[which].append(int(had[which].sum()))
    return Attempted(users, *after)


def _at_once(population: Population, drawn: Counts, margin: float, attempt: int) -> NDArray[np.int64]:
    """Verdicts of exhaustive audits."""
    analysis = InterimAnalysis(int(drawn[0].sum()), attempt=attempt)
    found = evidence(patterns(population), np.zeros_like(drawn), drawn, len(population.costs) - 1, None, analysis)
    return audit_rule(margin)(found)


def _in_turn(
    population: Population, images: int, margin: float, attempt: int, users: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Verdicts of audits that go in batches, on new images."""
    analyses = plan_analyses(images, margin, CONFIDENCE, attempt)
    sizes = np.diff([0, *(analysis.images for analysis in analyses)])
    batches = [draw(population, int(size), users, generator) for size in sizes]
    return in_turn(patterns(population), batches, analyses, audit_rule(margin))[0].verdicts
