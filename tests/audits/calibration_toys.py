"""What the tests of the calibration share: costs, and whether counts agree with rates."""

from __future__ import annotations

from typing import Any

from scipy.stats import binomtest

from audits.calibration.populations import costs
from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.verdict.stats import clopper_pearson
from tests.toys import TINY

CI = costs(BUDGETS["ci"])
#: Costs of which not all are whole restarts of the placebo at the budget `TINY`.
UNEQUAL: dict[str, Any] = {"costs": (12, 30, 60, 100), "restart": 2 * (TINY.apgd_steps + 1)}
SURE = 0.999


def exceeds(events: int, trials: int, rate: float) -> bool:
    """Whether so many events are too many for a true rate of ``rate`` or less."""
    return bool(clopper_pearson(events, trials, SURE)[0] > rate)


def agrees(events: int, trials: int, rate: float) -> bool:
    return bool(binomtest(events, trials, rate).pvalue > 1 - SURE)
