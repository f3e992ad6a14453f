"""The simulated populations have the chances that they are said to have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audits.calibration import randomized
from audits.calibration.populations import FINDERS, Population, draw, patterns
from audits.calibration.randomized import RandomizedPopulation
from audits.calibration.simulation import (
    CONFIDENCE,
    results,
)
from pytest_gradmask.verdict.interim import attempt_share
from pytest_gradmask.verdict.rule import decide
from pytest_gradmask.verdict.stats import mean_p
from tests.audits.calibration_toys import CI, UNEQUAL


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_chance_and_correlation_of_tries(correlation: float) -> None:
    """Tries have the chance and the correlation they are said to have."""
    seen = patterns(Population(0.5, 0.1, correlation))
    assert seen.chance.sum() == pytest.approx(1)
    survivors = np.where(seen.survives, seen.chance, 0) / 0.5
    # After one attack the placebo has had the budget of one try.
    tries = np.column_stack([seen.broken, seen.stage <= 0])
    assert (survivors @ tries).tolist() == pytest.approx([0.1] * 5)
    both = float(survivors @ (tries[:, 0] & tries[:, 4]))
    assert (both - 0.01) / 0.09 == pytest.approx(correlation)


def test_the_simulated_placebo_has_whole_restarts() -> None:
    """The placebo has the budget of all attacks so far in whole restarts."""
    population = Population(0.5, 0.1, **UNEQUAL)
    assert population.placebo_budgets() == pytest.approx([0.12, 0.48, 1.08, 2.04])
    assert replace(population, placebo_share=0.5).placebo_budgets() == pytest.approx([0.06, 0.24, 0.54, 1.02])


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_mean_passes_are_those_that_images_face(correlation: float) -> None:
    population = Population.breaking(0.7, correlation, costs=(30, 60), placebo_gets="mean")
    seen = patterns(population)
    assert float(seen.chance @ seen.broken.any(1)) == pytest.approx(0.6 * 0.7)
    soft = population.placebo / (population.placebo + correlation * (1 - population.placebo))
    generator = np.random.default_rng(0)
    # The pass that breaks an image, where each pass breaks it with the same chance.
    hazard = 1 - (1 - population.placebo / soft) ** (1 / 60)
    broken_at = np.where(generator.random(200_000) < soft, generator.geometric(hazard, 200_000), 10**9)
    means = [np.minimum(broken_at, cost).mean() for cost in (30, 60)]
    assert population.placebo_budgets() == pytest.approx([means[0] / 60, sum(means) / 60], rel=0.02)
    assert replace(population, placebo_gets="unbroken").placebo_budgets() == pytest.approx([0.5, 1.5])


def test_randomized_audits_are_measured_as_by_decide() -> None:
    generator = np.random.default_rng(0)
    for runs in (1, 7):
        population = RandomizedPopulation(runs)
        sampled = randomized.draw(population, 60, generator)
        clean, predictions, attacks = randomized.results(population, sampled, 60)
        decision = decide(clean, attacks, (), margin=0.02, confidence=CONFIDENCE, predictions=predictions)
        each = randomized.differences(population, sampled, 60, 7)
        assert decision.gap is not None
        assert decision.gap.estimate == pytest.approx(each.mean())
        assert decision.gap.p_value == pytest.approx(min(1.0, mean_p(each.tolist(), 0.0, -1.0) / attempt_share(1)))


@pytest.mark.slow
@pytest.mark.parametrize("finders", FINDERS)
def test_the_true_gap_is_what_many_images_show(finders: Any) -> None:
    population = Population(0.6, 0.05, 0.2, gap=0.1, finders=finders, **CI)
    seen = patterns(population)
    clean, attacks = results(seen, draw(population, 100_000, 1, seed=0)[0], 3, 3)
    decision = decide(clean, attacks, (), margin=0.05, confidence=CONFIDENCE)
    assert decision.gap is not None
    assert decision.gap.estimate == pytest.approx(seen.gap(3), abs=0.005)
    assert seen.gap(3) == pytest.approx(0.1, abs=0.01)
    assert patterns(Population(0.6, 0.0, gap=0.1, finders=finders)).gap(3) == pytest.approx(0.1)
