"""Fixtures of the tests of isolation."""

from __future__ import annotations

import pytest

from tests.execution.isolation_toys import Inside, Stateful, quietly, raising


@pytest.fixture(params=[quietly, raising], ids=["quietly", "raising"])
def inside(request: pytest.FixtureRequest) -> Inside:
    """A context manager that enters ``no_trace`` around a model, and leaves it in one of the two ways."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Stateful:
    """A model with every kind of state that an audit might change."""
    return Stateful()
