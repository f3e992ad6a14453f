"""Tiny recipes, separable data and command lines for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.training import __main__ as command
from pytest_gradmask.training import loop
from pytest_gradmask.training.recipes import Recipe
from tests.toys import draw

FIXTURES = Path(__file__).parents[2] / "fixtures"
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
#: Trains a front end in front of the model of `TINY`.
GUARDED = Recipe(
    name="guarded",
    architecture="dncnn",
    arguments={"depth": 3, "width": 4},
    backbone="tiny",
    residual_std=0.02,
    epochs=4,
    batch_size=16,
    optimizer="adamw",
    schedule="constant",
    learning_rate=0.01,
    weight_decay=0,
)
GUARDED_TOML = """
name = "guarded"
architecture = "dncnn"
arguments = { depth = 3, width = 4 }
backbone = "tiny"
residual_std = 0.02
epochs = 4
batch_size = 16
optimizer = "adamw"
schedule = "constant"
learning_rate = 0.01
weight_decay = 0
"""


def separable(count: int, seed: int = 0) -> Dataset:
    """Noise images in which the channel with the number of the label is brighter."""
    labels = torch.arange(count) % 3
    images = 0.4 * draw(count, 3, 16, 16, seed=seed)
    images[torch.arange(count), labels] += 0.4
    return Dataset(images, labels, "separable")


DATA = separable(48)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def identical(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


class KilledError(Exception):
    """Stands in for the signal that kills a run."""


def kill_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loop raise in the step after this many. Before that, every step saves its state."""
    original, count = loop.augment, iter(range(calls))

    def dying(*args: Any) -> Tensor:
        if next(count, None) is None:
            raise KilledError
        return original(*args)

    monkeypatch.setattr(loop, "augment", dying)
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)


def arguments(workshop: Path, *recipes: str, **options: str) -> list[str]:
    """The command line that trains recipes of the workshop on its data."""
    values = {
        "data": f"npz:{workshop / 'data.npz'}",
        "test": f"npz:{workshop / 'data.npz'}",
        "output": str(workshop / "out"),
        "state": str(workshop / "states"),
        "device": "cpu",
        **options,
    }
    files = [str(workshop / recipe) for recipe in recipes or ("tiny.toml",)]
    return [*files, *(word for key, value in values.items() for word in (f"--{key}", value))]


def refused(options: list[str], workshop: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, check that it fails without writing anything, and return its message."""
    before = sorted(workshop.rglob("*"))
    assert command.main(options) == 2
    assert sorted(workshop.rglob("*")) == before  # nothing was written
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    return output.err
