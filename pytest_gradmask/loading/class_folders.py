"""The order of class folders. Knows nothing of torch, so that a run can say it before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.specs import check_data


def class_order(names: Sequence[str]) -> list[str]:
    """The folders of classes by label: in text order or, if every name is a number, in that of numbers."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def order_note(names: Sequence[str]) -> str:
    """That folders are in the order of numbers, where text order is another one; otherwise empty."""
    order, text = class_order(names), sorted(names)
    if order == text:
        return ""
    label = next(label for label, name in enumerate(order) if text[label] != name)
    return (
        f"{len(order)} class folders in the order of numbers: label {label} is the folder {order[label]}, "
        f"which in text order would be {text[label]}"
    )


def note_on(spec: str) -> str:
    """What `order_note` says of a specification; empty if it is no ``imagefolder:`` or cannot be read."""
    try:
        found = check_data(spec)
        if found.kind != "imagefolder":
            return ""
        return order_note([entry.name for entry in Path(found.path).expanduser().iterdir() if entry.is_dir()])
    except (InputError, OSError):  # said where it is loaded
        return ""
