"""A run's file: weights, optimizer state and the number of the next step, in safetensors, replaced in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from audits.trained_masks.package import replaced
from audits.trained_masks.recipes import Recipe, as_table

_MODEL, _OPTIMIZER = "front_end.", "optimizer."


def save_run(
    file: Path, front_end: nn.Module, optimizer: torch.optim.Optimizer | None, step: int, recipe: Recipe
) -> None:
    """Write a run. Random numbers need no state: those of a step follow from the seed and the step.

    Args:
        file: replaced in one step.
        optimizer: of all parameters of ``front_end``, in their order; None: a snapshot that cannot be resumed.
        step: the next one.
    """
    tensors = {_MODEL + name: value for name, value in front_end.state_dict().items()}
    if optimizer is not None:
        for number, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{_OPTIMIZER}{number}.{name}"] = value
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    metadata = {"step": str(step), "recipe": json.dumps(as_table(recipe))}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as part:
        save_file(tensors, part, metadata)


def load_run(file: Path, front_end: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Read what `save_run` wrote into a front end and, if given, its optimizer.

    Returns:
        The next step.
    """
    states: dict[int, dict[str, Any]] = {}
    weights: dict[str, torch.Tensor] = {}
    with safe_open(file, framework="pt") as stored:
        step = int(stored.metadata()["step"])
        for name in stored.keys():  # noqa: SIM118  # it is no dictionary
            if name.startswith(_MODEL):
                weights[name.removeprefix(_MODEL)] = stored.get_tensor(name)
            else:
                number, key = name.removeprefix(_OPTIMIZER).split(".")
                states.setdefault(int(number), {})[key] = stored.get_tensor(name)
    front_end.load_state_dict(weights)
    if optimizer is not None:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return step


def stored_recipe(file: Path) -> Recipe:
    """The recipe that a run's file was written with."""
    with safe_open(file, framework="pt") as stored:
        return Recipe(**json.loads(stored.metadata()["recipe"]))
