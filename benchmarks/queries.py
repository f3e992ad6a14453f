"""How logit margins grow under attacks that need many queries: what `attacks.hopeless` is calibrated on.

An image that such an attack breaks in the end should not be given up before, at least not on a defense that masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask import Dataset, Defense
from pytest_gradmask.auditing.research import Bench, bench, hopeless

#: Shares of the queries after which margins are recorded.
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
ATTACKS = ("square", "zero-order")
Progress = Callable[[object], None]


def margin_growth(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    budget: str = "ci",
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """For each image that survives PGD, the share of the clean margin that is gone at `TIMES`; 1 and more is broken."""
    growth: dict[str, list[dict[str, Any]]] = {}
    with bench(defense, data.images, data.labels, budget=budget, device=device, seed=seed) as prepared:
        survivors = pgd_survivors(prepared)
        for attack in ATTACKS:
            progress(f"{attack} on {len(survivors)} images")
            watch = _Watch()
            planned = prepared.attacks[attack]
            watched = replace(planned, run=partial(planned.run, give_up=watch))
            prepared.run(watched, survivors)
            growth[attack] = watch.rows()
    return {"defense": name, "budget": budget, "seed": seed, "survivors": len(survivors), "growth": growth}


def pgd_survivors(prepared: Bench) -> list[int]:
    """Indices of the images that are classified correctly, and that the short PGD does not break."""
    return sorted(set(prepared.correct) - prepared.run(prepared.attacks["pgd"], prepared.correct).decided)


class _Watch:
    """Gives no image up, and records how margins grow. Their clean margins tell images apart."""

    def __init__(self) -> None:
        self.seen: dict[float, list[float | None]] = {}

    def __call__(self, before: Tensor, best: Tensor, done: float) -> Tensor:
        gone = 1 - best / before
        for key, share in zip(before.tolist(), gone.tolist(), strict=True):
            row = self.seen.setdefault(key, [None] * len(TIMES))
            for number, time in enumerate(TIMES):
                if done <= time + 1e-9:
                    row[number] = share
        return torch.zeros_like(best, dtype=torch.bool)

    def rows(self) -> list[dict[str, Any]]:
        """One for each image. Once it is broken, it has no further shares."""
        return [{"gone": [None if each is None else round(each, 4) for each in row]} for row in self.seen.values()]


def reached(gone: Sequence[float | None]) -> float:
    """The largest share of the clean margin that was gone; 1 and more is broken."""
    return max((each for each in gone if each is not None), default=0.0)


def gave_up(times: Sequence[float], gone: Sequence[float | None]) -> float | None:
    """The first of the times at which `hopeless` would give an image up; None if it would not."""
    for time, share in zip(times, gone, strict=True):
        if share is None or share >= 1:
            return None  # broken before
        if hopeless(torch.tensor([-1.0]), torch.tensor([share - 1.0]), time).item():
            return time
    return None
