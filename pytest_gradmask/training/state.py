"""State files of training runs: checked before a run continues from them."""

from __future__ import annotations

import pickle  # nosec B403  # only for its error type
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pytest_gradmask.errors import CheckpointError
from pytest_gradmask.training.recipes import Recipe

_STATE_KEYS = frozenset({"model", "optimizer", "scheduler", "step", "seconds", "history", "recipe", "images"})


def load_state(file: Path, recipe: Recipe, images: int) -> dict[str, Any] | None:
    """Read the last saved state of a killed or finished training run.

    Args:
        file: where `train` saved the state.
        recipe: the recipe to continue.
        images: number of training images.

    Returns:
        The state, on the CPU, or ``None`` if there is no file. Its ``seconds`` is the training time so far, and its
        ``history`` lists the step, the loss and the accuracy of each logged step.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another recipe or other data.
    """
    if not file.exists():
        return None
    remedy = f"delete it to train {recipe.name!r} anew, or keep states in another directory"
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"state {file}: cannot be read ({reason}); {remedy}") from error
    if not isinstance(state, dict) or not state.keys() >= _STATE_KEYS:
        raise CheckpointError(f"state {file}: is not the state of a training run; {remedy}")
    ours, theirs = {**asdict(recipe), "images": images}, {**state["recipe"], "images": state["images"]}
    different = [key for key in ours if theirs.get(key) != ours[key]]
    if different:
        differences = ", ".join(f"{key} is {theirs.get(key)!r} there and {ours[key]!r} here" for key in different)
        raise CheckpointError(f"state {file}: belongs to another run ({differences}); {remedy}")
    return state
