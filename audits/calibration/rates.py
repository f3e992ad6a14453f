"""Rates of verdicts among simulated populations, with bounds, and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from audits.calibration.simulation import CONFIDENCE
from pytest_gradmask.auditing.research import clopper_pearson

Row = Mapping[str, Any]
#: How the attacks of an audit run.
MODES = ("exhaustive", "in_turn")


def worst(rows: Iterable[Row], mode: str, verdict: int) -> tuple[float, float]:
    """The largest rate of a verdict among simulated populations, and its upper bound."""
    return max((rate(row[mode][verdict], row["audits"]) for row in rows), default=(0.0, 0.0))


def missed(rows: Sequence[Row]) -> list[Row]:
    """Populations with a gap of at least the margin, where ``NOT_MASKED`` is wrong."""
    return [row for row in rows if row["gap"] >= row["margin"]]


def rate(events: int, audits: int) -> tuple[float, float]:
    """A rate, and its exact upper bound."""
    return events / audits, clopper_pearson(events, audits, CONFIDENCE)[1]


def with_bound(bounded: tuple[float, float]) -> str:
    """A rate with its upper bound: ``0.12 % (≤ 0.20 %)``."""
    return f"{100 * bounded[0]:.2f} % (≤ {100 * bounded[1]:.2f} %)"


def percent(value: float) -> str:
    """A share in percent, with one decimal."""
    return f"{100 * value:.1f} %"


def groups(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows with the same key, in the order of the first of each."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def wrong(rows: Sequence[Row], images: str, gap: bool) -> tuple[float, float]:
    """The largest share of users who have had a wrong verdict after all attempts."""
    some = [row for row in rows if row["images"] == images and (row["gap"] > 0) == gap]
    return max(rate(row["counted"][-1], row["users"]) for row in some)
