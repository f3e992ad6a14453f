"""The measured defenses, by name."""

from __future__ import annotations

from dataclasses import replace

from audits.zoo import ZOO
from pytest_gradmask import Defense, load_model
from pytest_gradmask.auditing.research import as_defense


def find(name: str) -> Defense:
    """A known defense of the zoo or, if there is none of this name, a fixture."""
    made = as_defense(ZOO[name].build(load_model)) if name in ZOO else Defense(load_model(name))
    return replace(made, name=name)
