"""Entries that all fixture cards share, and the exit status of the commands that make fixtures."""

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
    """A card's entry for a data set: its kind, the name of its file or folder (never the path) and its size."""
    kind, _, path = data.source.partition(":")
    return {"kind": kind, "name": Path(path).expanduser().resolve().name if path else None, "images": len(data)}


def describe_device(device: str) -> str:
    """Name of the device: the product name of a GPU, or ``"cpu"``."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def output_directory(directory: Path | None) -> Path:
    """The directory to write fixtures to: ``directory``, or by default the package's fixtures.

    Raises:
        InputError: the directory is a file.
    """
    folder = directory or fixtures_directory()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"directory {folder}: is a file; name a directory, which is created if missing")
    return folder


def exit_code(command: Callable[[], None]) -> int:
    """Run a command. Return 0, or print the message to stderr and return 2 if it raises an error of this package."""
    try:
        command()
    except GradmaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
