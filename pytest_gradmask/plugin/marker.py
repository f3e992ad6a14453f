"""``@pytest.mark.gradmask(...)``: settings of one test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pytest_gradmask.auditing.budgets import Budget, get_budget
from pytest_gradmask.errors import InputError
from pytest_gradmask.plugin.settings import Settings
from pytest_gradmask.threat import ThreatModel

_ARGUMENTS = ("eps", "norm", "bounds", "budget", "margin", "confidence", "seed", "samples", "attempt", "exhaustive")

DESCRIPTION = (
    "gradmask(eps=8/255, norm='Linf', bounds=(0, 1), budget='smoke', margin=None, confidence=0.99, seed=0, "
    "samples=None, attempt=1, exhaustive=False): an audit; runs with --gradmask only. "
    "Each argument overrides the run's setting for this test."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSettings:
    """The settings of one test: those of the run, with the arguments of the test's markers in their place.

    Attributes:
        threat: threat model of the audit.
        budget: how much computation its attacks get.
        margin: the largest masking gap, as a share of images, that still counts as no masking.
        confidence: of every bound and test, in (0.5, 1).
        seed: of every random choice.
        samples: number of evaluation images; None for the budget's number.
        attempt: which audit of the same defense this is, from 1, at least.
        exhaustive: whether every attack runs on every image.
    """

    __test__ = False  # not a class of tests

    threat: ThreatModel
    budget: Budget
    margin: float
    confidence: float
    seed: int
    samples: int | None
    attempt: int
    exhaustive: bool


def is_audit(item: pytest.Item) -> bool:
    """Whether a test is an audit: it has the marker, or it uses the ``gradmask`` fixture."""
    return item.get_closest_marker("gradmask") is not None or "gradmask" in getattr(item, "fixturenames", ())


def read_marker(item: pytest.Item, settings: Settings) -> TestSettings:
    """Settings of one test. For each argument, the marker closest to the test wins.

    Raises:
        pytest.UsageError: positional or unknown arguments, or values out of range.
    """
    arguments: dict[str, Any] = {}
    for marker in item.iter_markers("gradmask"):
        if marker.args:
            raise pytest.UsageError(
                f"{item.nodeid}: gradmask marker takes keyword arguments only, got {marker.args!r}; "
                f"use {', '.join(_ARGUMENTS)}"
            )
        unknown = sorted(set(marker.kwargs) - set(_ARGUMENTS))
        if unknown:
            raise pytest.UsageError(
                f"{item.nodeid}: unknown gradmask marker argument {', '.join(unknown)}; use {', '.join(_ARGUMENTS)}"
            )
        arguments = {**marker.kwargs, **arguments}
    try:
        return _resolve(arguments, settings)
    except InputError as error:
        raise pytest.UsageError(f"{item.nodeid}: gradmask marker: {error}") from error


def _resolve(arguments: dict[str, Any], settings: Settings) -> TestSettings:
    threat = ThreatModel(**{name: arguments[name] for name in ("eps", "norm", "bounds") if name in arguments})
    budget = get_budget(arguments.get("budget", settings.budget))
    margin = arguments.get("margin")
    margin = budget.margin if margin is None else margin
    confidence = arguments.get("confidence", 0.99)
    for name, value, low in (("margin", margin, 0), ("confidence", confidence, 0.5)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < 1:
            raise InputError(f"{name}={value!r}: must be between {low} and 1")
    seed, samples = arguments.get("seed", settings.seed), arguments.get("samples", settings.samples)
    attempt = arguments.get("attempt", settings.attempt)
    for name, value, least in (("seed", seed, 0), ("samples", samples, 1), ("attempt", attempt, 1)):
        if (value is not None or name == "attempt") and (
            isinstance(value, bool) or not isinstance(value, int) or value < least
        ):
            raise InputError(f"{name}={value!r}: must be a whole number of at least {least}")
    exhaustive = arguments.get("exhaustive", False)
    if not isinstance(exhaustive, bool):
        raise InputError(f"exhaustive={exhaustive!r}: must be True or False")
    return TestSettings(
        threat=threat,
        budget=budget,
        margin=margin,
        confidence=confidence,
        seed=seed,
        samples=samples,
        attempt=attempt,
        exhaustive=exhaustive,
    )
