"""Hooks that other plugins and ``conftest.py`` files may implement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_gradmask.defense import Attack, Defense


@pytest.hookspec
def pytest_gradmask_attacks(config: pytest.Config, defense: Defense) -> Sequence[Attack | Callable[..., Any]]:
    """More attacks on a defense that is about to be audited or timed.

    They are treated as if the defense itself had named them: see `Defense.attacks` and `Attack`.

    Args:
        config: of the run.
        defense: as the test has given it.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_gradmask_probes(config: pytest.Config, defense: Defense) -> Sequence[Callable[..., Any]]:
    """More probes of a defense that is about to be audited: ``probe(model, images, labels, *, threat, generator)``.

    Each returns findings (`Finding`) about images that are classified correctly. A finding with
    ``undermines_attacks=True`` refuses a ``NOT_MASKED``; none makes a verdict ``MASKED``.

    Args:
        config: of the run.
        defense: as the test has given it.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_gradmask_report(
    config: pytest.Config, audits: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]
) -> None:
    """All audits of a run, at its end; under xdist on the controller only.

    Args:
        config: of the run.
        audits: as in the file of ``--gradmask-json``, whose schema is published; empty if there were none.
        provenance: command, time, versions and settings of the run.
    """
