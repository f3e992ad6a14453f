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

    They are treated like those in `Defense.attacks`; see also `Attack`.

    Args:
        config: of the run.
        defense: as the test passes it.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_gradmask_probes(config: pytest.Config, defense: Defense) -> Sequence[Callable[..., Any]]:
    """More probes of a defense that is about to be audited: ``probe(model, images, labels, *, threat, generator)``.

    The images are classified correctly. Each probe returns findings (a sequence of `Finding`). A finding with
    ``undermines_attacks=True`` prevents the verdict ``NOT_MASKED``. No finding makes a verdict ``MASKED``.

    Args:
        config: of the run.
        defense: as the test passes it.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_gradmask_report(
    config: pytest.Config, audits: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]
) -> None:
    """Called with all audits of a run, at its end. Under pytest-xdist it is called on the controller only.

    Args:
        config: of the run.
        audits: as in the file of ``--gradmask-json``, which has a published schema; empty if nothing was audited.
        provenance: command, time, versions and settings of the run.
    """
