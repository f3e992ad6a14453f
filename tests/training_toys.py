"""A tiny recipe and separable data for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.datasets import Dataset
from pytest_gradmask.training import loop
from pytest_gradmask.training.recipes import Recipe
from tests.toys import draw

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = Recipe(
    name="tiny",
    architecture="vgg",
    arguments={"layout": [4, "M", 8], "num_classes": 3},
    epochs=4,
    batch_size=16,
    learning_rate=0.1,
)
TOML = """
name = "tiny"
architecture = "vgg"
arguments = { layout = [4, "M", 8], num_classes = 3 }
epochs = 4
batch_size = 16
learning_rate = 0.1
"""


def separable(count: int, seed: int = 0) -> Dataset:
    """Noise of which the channel numbered by the label is brighter."""
    labels = torch.arange(count) % 3
    images = 0.4 * draw(count, 3, 16, 16, seed=seed)
    images[torch.arange(count), labels] += 0.4
    return Dataset(images, labels, "separable")


DATA = separable(48)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def identical(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


class KilledError(Exception):
    """Stands for a signal."""


def kill_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop die in the step after so many, with a state saved after every step before."""
    original, count = loop.augment, iter(range(calls))

    def dying(*args: Any) -> torch.Tensor:
        if next(count, None) is None:
            raise KilledError
        return original(*args)

    monkeypatch.setattr(loop, "augment", dying)
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)
