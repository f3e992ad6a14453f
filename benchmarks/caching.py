"""The time of a second audit of an unchanged defense, beside the first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.records import clock
from pytest_gradmask import Dataset, Defense, audit


def cache_gain(
    name: str, make: Callable[[], Defense], data: Dataset, *, budget: str = "ci", device: str = "cpu", rounds: int = 5
) -> dict[str, Any]:
    """Seconds of a first audit, and the median of later ones. Each audits a newly made defense."""
    seconds, now = [], clock(device)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            defense = make()
            started = now()
            found = audit(defense, data.images, data.labels, budget=budget, device=device, cache=Path(folder))
            seconds.append(now() - started)
    first, *later = seconds
    again = sorted(later)[len(later) // 2]
    return {
        "defense": name, "budget": budget, "images": len(data.labels), "verdict": found.verdict.name,
        "cached": found.cached, "first": first, "again": again, "ratio": first / again,
    }  # fmt: skip
