"""A training recipe: everything that decides what a run produces, as data in a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_gradmask.errors import InputError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train one model.

    Attributes:
        name: name of the checkpoint it makes.
        architecture: key of `pytest_gradmask.models.ARCHITECTURES`.
        arguments: keyword arguments of that architecture.
        epochs: passes over the training data, may be fractional.
        batch_size: images a step.
        learning_rate: peak of the one-cycle schedule (Smith and Topin 2018).
        weight_decay: L2 penalty of SGD.
        label_smoothing: in [0, 1).
        eps: radius of the Linf ball of adversarial training in [0, 1] units; 0 trains on clean images.
        attack_steps: steps of the inner attack: 1 is the randomly started FGSM of Wong et al. 2020,
            more is the PGD of Madry et al. 2018.
        attack_step_size: of the inner attack, as a multiple of eps.
        seed: of initialisation, data order and augmentation.
    """

    name: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: float = 10.0
    batch_size: int = 128
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    eps: float = 0.0
    attack_steps: int = 1
    attack_step_size: float = 1.0
    seed: int = 0


def load_recipe(file: Path) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        InputError: the file is missing, is not TOML, or has keys a `Recipe` does not know.
    """
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise InputError(f"recipe {file}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {file}: is not TOML ({error})") from error
    known = {entry.name for entry in fields(Recipe)}
    unknown = set(content) - known
    if unknown:
        raise InputError(f"recipe {file}: unknown keys {sorted(unknown)}; known are {sorted(known)}")
    try:
        return Recipe(**content)
    except TypeError as error:
        raise InputError(f"recipe {file}: {error}") from error
