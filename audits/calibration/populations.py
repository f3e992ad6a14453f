"""Populations of images: with what chance each attack breaks them is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from pytest_gradmask import Budget

Counts = NDArray[np.int64]
#: Which adaptive attacks find the images that are masked: every one of them, the last only, or each its own part.
Finders = Literal["all", "last", "parts"]
FINDERS: tuple[Finders, ...] = ("all", "last", "parts")
PlaceboGets = Literal["unbroken", "mean"]


@dataclass(frozen=True, slots=True)
class Population:
    """The images that are classified correctly, as four adaptive attacks and the placebo find them.

    Every pass of an attack breaks an image that is not masked with the same chance. An attack leaves an image once it
    is broken.

    Attributes:
        survival: share of images that survive the gradient attacks, in (0, 1].
        placebo: chance that the placebo breaks such an image, unless it is masked, with the passes of the costliest
            adaptive attack. An adaptive attack with as many passes has the same chance. An attack with a share ``c`` of
            these passes fails with the ``c``-th power of the chance to fail.
        correlation: of two attacks on one image: 0 if they are independent, 1 if one breaks an image where the other
            does.
        gap: share of images that are masked: no placebo breaks them.
        finders: which adaptive attacks break those.
        costs: passes of each adaptive attack on an image that it does not break, in the order of `simulation.ADAPTIVE`.
        restart: passes of one restart of the placebo. It gets whole restarts, as many as the costs need.
        placebo_share: the share that the placebo gets of the passes that it is due. Below 1, it is too weak.
        placebo_gets: the passes that an unbroken image faced in the adaptive attacks, or, as a wrong rule, the mean
            passes of all images that they attacked.
    """

    survival: float
    placebo: float
    correlation: float = 0.0
    gap: float = 0.0
    finders: Finders = "all"
    costs: tuple[int, ...] = (1, 1, 1, 1)
    restart: int = 1
    placebo_share: float = 1.0
    placebo_gets: PlaceboGets = "unbroken"

    @classmethod
    def breaking(cls, share: float, correlation: float = 0.0, **rest: Any) -> Population:
        """Without masking, where all adaptive attacks together break this share of the survivors."""
        attacks = sum(rest["costs"]) / max(rest["costs"])

        def broken(placebo: float) -> float:
            soft, chance = _soft(placebo, correlation)
            return float(soft * (1 - (1 - chance) ** attacks)) - share

        return cls(0.6, float(optimize.brentq(broken, 0.0, 1 - 1e-9)), correlation, **rest)

    def placebo_budgets(self) -> list[float]:
        """After each adaptive attack, what the placebo has had, relative to the costliest attack of all."""
        each = self.costs if self.placebo_gets == "unbroken" else self._mean_costs()
        spent = [sum(each[: number + 1]) for number in range(len(each))]
        whole = [self.restart * math.ceil(passes / self.restart) for passes in spent]
        return [self.placebo_share * passes / max(self.costs) for passes in whole]

    def _mean_costs(self) -> list[float]:
        """Mean passes of each adaptive attack. An image that it breaks faces fewer than its cost."""
        soft, chance = _soft(self.placebo, self.correlation)
        hazard = -math.log1p(-chance) / max(self.costs)
        ordinary = (1 - self.gap / self.survival) * soft
        return [
            cost * (1 - ordinary) + ordinary * (-math.expm1(-hazard * cost) / hazard if hazard else cost)
            for cost in self.costs
        ]


def _soft(placebo: float, correlation: float) -> tuple[float, float]:
    """Of the images that are not masked, the share that any attack ever breaks, and the chance that one does."""
    soft = placebo / (placebo + correlation * (1 - placebo)) if placebo else 1.0
    return soft, placebo / soft


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
        survives: whether no gradient attack breaks it.
        broken: pattern by adaptive attack.
        stage: the adaptive attack after which the placebo, with its budget of then, breaks it; the number of
            adaptive attacks if it never does.
    """

    chance: NDArray[np.float64]
    survives: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    stage: NDArray[np.int64]

    def discordant(self, last: int) -> float:
        """The chance that either the adaptive attacks up to number ``last`` or the placebo break an image, not both."""
        return float(self.chance @ (self.broken[:, : last + 1].any(1) != (self.stage <= last)))

    def gap(self, last: int, stage: int | None = None) -> float:
        """The true gap of the adaptive attacks up to number ``last``, beyond the placebo of that stage or another."""
        ours, theirs = self.broken[:, : last + 1].any(1), self.stage <= (last if stage is None else stage)
        return float(self.chance @ ((ours & ~theirs).astype(float) - (theirs & ~ours)))


def patterns(population: Population) -> Patterns:
    """The exact distribution of patterns."""
    attacks = len(population.costs)
    shares = [cost / max(population.costs) for cost in population.costs]
    budgets = population.placebo_budgets()
    # Only soft images are ever broken. A small share of them makes being broken nearly a property of the image.
    soft, chance = _soft(population.placebo, population.correlation)
    ordinary = population.survival - population.gap
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
        unbroken = [1.0, *((1 - to_placebo) ** budget for budget in budgets), 0.0]
        for broken in product([False, True], repeat=attacks):
            each = [q if by_this else 1 - q for by_this, q in zip(broken, to_attacks, strict=True)]
            rows += [
                (share * math.prod(each) * (unbroken[stage] - unbroken[stage + 1]), True, broken, stage)
                for stage in range(attacks + 1)
            ]
    nothing = (False,) * attacks
    rows.append((1 - population.survival, False, nothing, attacks))
    possible = [row for row in rows if row[0] > 0]
    chances, survives, broken_by, stages = zip(*possible, strict=True)
    return Patterns(np.array(chances), np.array(survives), np.array(broken_by), np.array(stages))


def draw(population: Population, images: int, audits: int, seed: int | np.random.Generator) -> Counts:
    """Audits by patterns: how many images show each."""
    chance = patterns(population).chance
    return np.random.default_rng(seed).multinomial(images, chance / chance.sum(), size=audits)
