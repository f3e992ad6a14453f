"""What Square and zero-order PGD break, and how long they take, where bfloat16 guides their searches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.queries import ATTACKS, Progress, pgd_survivors
from benchmarks.records import clock
from pytest_gradmask import Dataset, Defense
from pytest_gradmask.auditing.research import Precision, bench

PRECISIONS: tuple[Precision, ...] = ("own", "bfloat16")


def searches(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    budget: str = "ci",
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Both attacks on the images that survive PGD, in both precisions.

    Returns:
        ``chosen``: what an audit chooses; ``rows``: for each attack and precision the images that it breaks, its
        forward passes and its seconds.
    """
    rows, now = [], clock(device)
    with bench(defense, data.images, data.labels, budget=budget, device=device, seed=seed) as prepared:
        survivors = pgd_survivors(prepared)
        for attack in ATTACKS:
            for precision in PRECISIONS:
                progress(f"{attack} on {len(survivors)} images, {precision}")
                searching = replace(prepared, scorer=replace(prepared.scorer, search_precision=precision))
                started = now()
                result = searching.run(prepared.attacks[attack], survivors)
                rows.append({
                    "attack": attack, "precision": precision, "broken": sorted(result.broken),
                    "forwards": result.forwards, "seconds": round(now() - started, 2),
                })  # fmt: skip
        chosen = prepared.scorer.search_precision
    return {
        "defense": name, "budget": budget, "seed": seed, "survivors": len(survivors), "chosen": chosen, "rows": rows,
    }  # fmt: skip
