"""The accuracy under attacks with the same number of steps: ours, and those of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from audits.peers import PEERS, installed
from pytest_gradmask import Dataset, Defense
from pytest_gradmask.auditing.research import bench

_OURS = "pytest-gradmask"
Progress = Callable[[object], None]


def strengths(
    name: str,
    defense: Defense,
    data: Dataset,
    *,
    steps: int = 50,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Robust accuracy and passes under each attack of each library that is installed.

    The images that the attacks return are all judged in the same way, by the defense's predictions. No attack makes
    more than ``steps`` steps on an image, and one further pass at the start or the end. Some stop on broken images.
    """
    rows = []
    with bench(defense, data.images, data.labels, device=device, seed=seed) as prepared:
        for (attack, library), (package, run) in PEERS.items():
            if not installed(package):
                continue
            progress(f"{attack} by {library}")
            result = prepared.runner(partial(run, steps=steps))()
            share, images = prepared.accuracy(result), len(result.attacked)
            rows.append(
                {
                    "attack": attack, "library": library, "accuracy": [share.value, share.low, share.high],
                    "forwards": result.forwards / images, "backwards": result.backwards / images,
                }
            )  # fmt: skip
        clean = sum(prepared.clean) / len(prepared.clean)
    return {
        "defense": name, "images": len(data.labels), "steps": steps, "seed": seed, "clean": clean, "rows": rows,
        "above_best_peer": _above_best_peer(rows),
    }  # fmt: skip


def _above_best_peer(rows: list[dict[str, Any]]) -> float | None:
    """The accuracy under our best attack minus that under the best attack of all other libraries."""

    def accuracy(row: Mapping[str, Any]) -> float:
        return float(row["accuracy"][0])

    peers = [accuracy(row) for row in rows if row["library"] != _OURS]
    ours = [accuracy(row) for row in rows if row["library"] == _OURS]
    return min(ours) - min(peers) if peers else None
