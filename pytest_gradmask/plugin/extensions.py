"""What other plugins add to an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from pytest_gradmask.defense import Defense


def with_attacks(node: pytest.Item, defense: Defense | nn.Module) -> Defense:
    """The defense, with the attacks that the hooks of this test add to it."""
    from pytest_gradmask.defense import as_defense

    defense = as_defense(defense)
    added = [*chain.from_iterable(node.ihook.pytest_gradmask_attacks(config=node.config, defense=defense))]
    return replace(defense, attacks=(*defense.attacks, *added)) if added else defense


def more_probes(node: pytest.Item, defense: Defense) -> tuple[Callable[..., Any], ...]:
    """The probes that the hooks of this test add."""
    return tuple(chain.from_iterable(node.ihook.pytest_gradmask_probes(config=node.config, defense=defense)))
