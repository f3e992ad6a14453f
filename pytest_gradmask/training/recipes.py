"""Training recipes: all settings of a training run, read from a TOML file."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_gradmask.errors import InputError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")  # valid names of checkpoints

#: For each field: its type, a further condition, and both in words. A ``float`` may be written as an integer.
_RULES: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "name": (str, lambda v: bool(_NAME.fullmatch(v)), "lower-case letters, digits and dashes, such as 'vgg-standard'"),
    "architecture": (str, lambda v: bool(v), "a key of pytest_gradmask.loading.models.ARCHITECTURES, such as 'vgg'"),
    "arguments": (dict, lambda v: all(isinstance(key, str) for key in v), "a table, such as { num_classes = 10 }"),
    "epochs": (float, lambda v: v > 0, "a number above 0, such as 10"),
    "batch_size": (int, lambda v: v >= 1, "an integer of at least 1, such as 128"),
    "learning_rate": (float, lambda v: v > 0, "a number above 0, such as 0.2"),
    "optimizer": (str, lambda v: v in ("sgd", "adamw"), "'sgd' or 'adamw'"),
    "schedule": (str, lambda v: v in ("one-cycle", "constant"), "'one-cycle' or 'constant'"),
    "weight_decay": (float, lambda v: v >= 0, "a number of at least 0, such as 5e-4"),
    "label_smoothing": (float, lambda v: 0 <= v < 1, "a number in [0, 1), such as 0.1"),
    "eps": (float, lambda v: 0 <= v <= 1, "a number in [0, 1], in units of images in [0, 1], such as 0.0314 (8/255)"),
    "attack_steps": (int, lambda v: v >= 1, "an integer of at least 1; to train on clean images set eps = 0"),
    "attack_step_size": (float, lambda v: v > 0, "a number above 0, as a multiple of eps, such as 1.0"),
    "initial": (str, lambda v: not v or bool(_NAME.fullmatch(v)), "the name of a checkpoint, or '' to start anew"),
    "backbone": (str, lambda v: not v or bool(_NAME.fullmatch(v)), "the name of a checkpoint, or '' for none"),
    "residual_std": (float, lambda v: 0 <= v <= 1, "a number in [0, 1], in units of images in [0, 1], such as 0.02"),
    "recalibrate": (bool, lambda v: True, "true or false"),
    "seed": (int, lambda v: 0 <= v < 2**32, "an integer from 0 to 2**32 - 1, such as 0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train one model.

    Attributes:
        name: name of the checkpoint to make.
        architecture: key of `pytest_gradmask.loading.models.ARCHITECTURES`.
        arguments: keyword arguments of that architecture.
        epochs: passes over the training data; may be fractional.
        batch_size: images per step.
        learning_rate: learning rate of every step, or the peak if the schedule is one-cycle.
        optimizer: ``"sgd"`` (with Nesterov momentum) or ``"adamw"`` (plain Adam if ``weight_decay`` is 0).
        schedule: ``"one-cycle"`` (Smith and Topin 2018, arXiv:1708.07120) or ``"constant"``.
        weight_decay: L2 penalty of SGD, or the decay of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
        label_smoothing: in [0, 1).
        eps: radius of the Linf ball of adversarial training in [0, 1] units; 0 trains on clean images.
        attack_steps: steps of the inner attack. 1 step is FGSM with a random start (Wong et al. 2020,
            arXiv:2001.03994); more steps are PGD (Madry et al. 2018, arXiv:1706.06083).
        attack_step_size: step size of the inner attack, as a multiple of eps.
        initial: checkpoint to start from, in the directory where this one will be saved. If empty, start from a new
            model.
        backbone: checkpoint of a classifier. If not empty, the recipe makes a front end, which is trained in front of
            this backbone. The backbone is frozen and in eval mode, so only the front end learns (arXiv:2402.17018).
        residual_std: if above 0, `calibrate` the untrained front end to a residual of this standard deviation.
        recalibrate: whether to set the batch norm statistics to those of the calibration data after training.
        seed: seed of initialisation, data order and augmentation.

    Raises:
        InputError: on a value of the wrong type or outside its range.
    """

    name: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: float = 10.0
    batch_size: int = 128
    learning_rate: float = 0.2
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    eps: float = 0.0
    attack_steps: int = 1
    attack_step_size: float = 1.0
    initial: str = ""
    backbone: str = ""
    residual_std: float = 0.0
    recalibrate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key, (kind, holds, wanted) in _RULES.items():
            value = getattr(self, key)
            if not (_is_a(value, kind) and holds(value)):
                raise InputError(f"{key}={value!r}: must be {wanted}")
        if self.residual_std and not self.backbone:
            raise InputError(f"residual_std={self.residual_std!r}: is for front ends only; name the backbone of one")
        if self.backbone in (self.name, f"{self.name}-front-end"):
            raise InputError(
                f"backbone={self.backbone!r}: would be overwritten by what {self.name!r} makes; rename one"
            )


def _is_a(value: object, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):  # bool is a subclass of int, but not a valid number here
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def load_recipe(file: Path) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        InputError: the file is missing, is not TOML, lacks a key without a default, has keys a `Recipe` does not
            know, or has an invalid value.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe {file}: cannot be read ({error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {file}: is not TOML ({error})") from error
    known = {entry.name for entry in fields(Recipe)}
    unknown = set(content) - known
    if unknown:
        raise InputError(f"recipe {file}: unknown keys {sorted(unknown)}; known are {sorted(known)}")
    for entry in fields(Recipe):
        if entry.name not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f"recipe {file}: has no {entry.name}; it must be {_RULES[entry.name][2]}")
    try:
        return Recipe(**content)
    except InputError as error:
        raise InputError(f"recipe {file}: {error}") from error
