"""Populations of images, of which it is known with what chance they fall to which attacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_gradmask import Budget

Counts = NDArray[np.int64]
#: Which adaptive attacks find the images that are masked: every one of them, the last only, or each its own part.
Finders = Literal["all", "last", "parts"]
FINDERS: tuple[Finders, ...] = ("all", "last", "parts")


@dataclass(frozen=True, slots=True)
class Population:
    """The images that are classified correctly, as four adaptive attacks and the placebo find them.

    Attributes:
        standing: share of images that survive the gradient attacks, in (0, 1].
        placebo: chance that such an image, unless masked, falls to a try with the budget of the costliest adaptive
            attack: to the placebo and, with the same chance, to an adaptive attack. A try with a share ``c`` of
            that budget fails with the ``c``-th power of the chance to fail.
        correlation: of two tries on one image: 0 if they are independent, 1 if an image that falls to one falls to all.
        gap: share of images that are masked: no placebo breaks them.
        finders: which adaptive attacks break those.
        costs: passes an image of each adaptive attack, in the order of `simulation.ADAPTIVE`.
        restart: passes of one restart of the placebo; it gets whole restarts, as many as the costs need.
        placebo_share: of the budget it is due, what the placebo gets; below 1 to see that too weak a placebo shows.
    """

    standing: float
    placebo: float
    correlation: float = 0.0
    gap: float = 0.0
    finders: Finders = "all"
    costs: tuple[int, ...] = (1, 1, 1, 1)
    restart: int = 1
    placebo_share: float = 1.0

    def placebo_budgets(self) -> list[float]:
        """After each adaptive attack, what the placebo has had, relative to the costliest attack of all."""
        spent = [sum(self.costs[: number + 1]) for number in range(len(self.costs))]
        whole = [self.restart * math.ceil(passes / self.restart) for passes in spent]
        return [self.placebo_share * passes / max(self.costs) for passes in whole]


def costs(budget: Budget) -> dict[str, Any]:
    """``costs`` and ``restart`` of a `Population` whose attacks spend all of a budget, on a deterministic defense."""
    apgd = 2 * (budget.bpda_steps + 1)
    zero_order = budget.zero_order_steps * (2 * budget.zero_order_pairs + 1) + 1
    return {"costs": (apgd, apgd, budget.square_queries, zero_order), "restart": 2 * (budget.apgd_steps + 1)}


@dataclass(frozen=True, slots=True)
class Patterns:
    """Everything that can become of an image, and how likely.

    Attributes:
        chance: of each pattern; they add up to 1.
        standing: whether it survives the gradient attacks.
        falls: pattern by adaptive attack.
        stage: the adaptive attack after which the placebo, with its budget of then, breaks it; the number of
            adaptive attacks if it never does.
    """

    chance: NDArray[np.float64]
    standing: NDArray[np.bool_]
    falls: NDArray[np.bool_]
    stage: NDArray[np.int64]

    def discordant(self, last: int) -> float:
        """The chance that an image falls to the adaptive attacks up to number ``last`` or to the placebo, not both."""
        return float(self.chance @ (self.falls[:, : last + 1].any(1) != (self.stage <= last)))

    def gap(self, last: int, stage: int | None = None) -> float:
        """The true gap of the adaptive attacks up to number ``last``, beyond the placebo of that stage or another."""
        ours, theirs = self.falls[:, : last + 1].any(1), self.stage <= (last if stage is None else stage)
        return float(self.chance @ ((ours & ~theirs).astype(float) - (theirs & ~ours)))


def patterns(population: Population) -> Patterns:
    """The exact distribution of patterns."""
    attacks = len(population.costs)
    shares = [cost / max(population.costs) for cost in population.costs]
    budgets = population.placebo_budgets()
    # An image that is not masked is soft or hard; only soft ones ever fall, and a share that is small makes
    # whether they do nearly a property of the image.
    p = population.placebo
    soft = p / (p + population.correlation * (1 - p)) if p else 1.0
    chance = p / soft
    ordinary = population.standing - population.gap
    never = [0.0] * attacks
    groups = [
        (ordinary * soft, [1 - (1 - chance) ** share for share in shares], chance),
        (ordinary * (1 - soft), never, 0.0),
    ]
    parts = attacks if population.finders == "parts" else 1
    for part in range(parts):
        finds = {"all": range(attacks), "last": [attacks - 1], "parts": [part]}[population.finders]
        groups.append((population.gap / parts, [float(number in finds) for number in range(attacks)], 0.0))
    rows: list[tuple[float, bool, tuple[bool, ...], int]] = []
    for share, to_attacks, to_placebo in groups:
        kept = [1.0, *((1 - to_placebo) ** budget for budget in budgets), 0.0]
        for falls in product([False, True], repeat=attacks):
            each = [q if fell else 1 - q for fell, q in zip(falls, to_attacks, strict=True)]
            rows += [
                (share * math.prod(each) * (kept[stage] - kept[stage + 1]), True, falls, stage)
                for stage in range(attacks + 1)
            ]
    nothing = (False,) * attacks
    rows.append((1 - population.standing, False, nothing, attacks))
    possible = [row for row in rows if row[0] > 0]
    chances, standing, fell, stages = zip(*possible, strict=True)
    return Patterns(np.array(chances), np.array(standing), np.array(fell), np.array(stages))


def draw(population: Population, images: int, audits: int, seed: int | np.random.Generator) -> Counts:
    """Audits by patterns: how many images show each."""
    chance = patterns(population).chance
    return np.random.default_rng(seed).multinomial(images, chance / chance.sum(), size=audits)
