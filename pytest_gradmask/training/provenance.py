"""What the cards of all fixtures record alike, and how the commands that make fixtures fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.loading.checkpoints import fixtures_directory
from pytest_gradmask.loading.datasets import Dataset


def describe(data: Dataset) -> dict[str, Any]:
    """What a card tells of a data set: its kind, the name of its file or folder (never the path) and its size."""
    kind, _, path = data.source.partition(":")
    return {"kind": kind, "name": Path(path).expanduser().resolve().name if path else None, "images": len(data)}


def describe_device(device: str) -> str:
    """The device in words: a GPU by its name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def output_directory(given: Path | None) -> Path:
    """Where fixtures are written: ``given``, or where the package looks for them.

    Raises:
        InputError: it is a file.
    """
    folder = given or fixtures_directory()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"directory {folder}: is a file; name a directory, which is created if missing")
    return folder


def exit_code(command: Callable[[], None]) -> int:
    """Run a command: 0 if it ends, 2 with its message on stderr if it raises an error of this package."""
    try:
        command()
    except GradmaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
