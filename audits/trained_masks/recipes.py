"""What can be varied in a training, and the table of all trainings, `recipes.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from audits.trained_masks.residuals import ARCHITECTURES

_TABLE = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One training of a front end before a frozen backbone.

    Attributes:
        name: of the run.
        backbone: name of a checkpoint of pytest-gradmask; in eval mode and frozen.
        architecture, depth, width, normalized: of the front end, see `IdentityStart`.
        trained: ``"all"`` of its parameters, or only those of its ``"last"`` convolutions.
        optimizer: ``"adamw"`` or ``"sgd"`` (with momentum 0.9).
        learning_rate: constant.
        weight_decay: of the optimizer.
        loss: whether the cross-entropy of a batch is its ``"mean"`` or, as in the authors' toolkit, its ``"sum"``.
            AdamW hardly feels the difference, SGD's rate is that many times larger.
        batch_size: images a step.
        epochs: of the training images.
        eps: radius of the inner attack, Linf.
        attack_steps: of the inner attack, which is PGD; 0 trains on clean images.
        attack_step_size: in input units; 0: 2.5 times ``eps`` by ``attack_steps``.
        random_start: whether the inner attack starts at a random point of the ball.
        attack_statistics: batch norm of the front end during the inner attack: of the ``"batch"``, as in the authors'
            toolkit, or ``"running"``. The step after it is always taken with those of the batch.
        attack_precision: ``"float32"``, or ``"bfloat16"`` for an inner attack in half the time.
        erase: whether a rectangle of each image is blackened, as in the authors' toolkit, besides crop and flip.
        seed: of weights, order, augmentation and random starts.
    """

    name: str
    backbone: str
    architecture: str = "dncnn"
    trained: str = "all"
    depth: int = 17
    width: int = 64
    normalized: bool = False
    optimizer: str = "adamw"
    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    loss: str = "mean"
    batch_size: int = 32
    epochs: float = 1.0
    eps: float = 8 / 255
    attack_steps: int = 2
    attack_step_size: float = 0.0
    random_start: bool = True
    attack_statistics: str = "batch"
    attack_precision: str = "float32"
    erase: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "architecture": tuple(ARCHITECTURES),
            "trained": ("all", "last"),
            "optimizer": ("adamw", "sgd"),
            "loss": ("mean", "sum"),
            "attack_statistics": ("batch", "running"),
            "attack_precision": ("float32", "bfloat16"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{self.name}: {key}={getattr(self, key)!r}: must be one of {', '.join(allowed)}")

    @property
    def step_size(self) -> float:
        return self.attack_step_size or 2.5 * self.eps / max(self.attack_steps, 1)

    def total_steps(self, images: int) -> int:
        """Steps of the whole training; what is left of an epoch after the last full batch is not used."""
        return round(self.epochs * (images // self.batch_size))


def as_table(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values."""
    return {field.name: getattr(recipe, field.name) for field in fields(recipe)}


def load_recipes(table: Path = _TABLE) -> dict[str, Recipe]:
    """All recipes by name. Values of the table ``defaults`` hold for every run that does not say otherwise.

    Raises:
        ValueError, TypeError: a value or a key that `Recipe` does not know.
    """
    with table.open("rb") as file:
        runs = tomllib.load(file)
    defaults = runs.pop("defaults", {})
    return {name: Recipe(**{**defaults, **run, "name": name}) for name, run in runs.items()}
