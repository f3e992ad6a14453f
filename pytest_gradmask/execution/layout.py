"""What an object holds: its attributes and slots, and whether it holds more than Python can see."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_POINTER = struct.calcsize("P")


def attributes(value: object) -> Iterator[tuple[str, object]]:
    """Name and value of each attribute and filled slot of an object itself."""
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        yield from held.items()
    for base in type(value).__mro__:
        for slot in _slots(base):
            descriptor = base.__dict__.get(slot)
            try:
                yield slot, descriptor.__get__(value, type(value))  # type: ignore[union-attr]
            except AttributeError:
                continue


def hides_state(kind: type) -> bool:
    """Whether objects are larger than their attributes need: types written in C have hidden state there."""
    pointers = sum(len(_slots(base)) for base in kind.__mro__)
    pointers += (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ > object.__basicsize__ + _POINTER * pointers or kind.__itemsize__ > 0


def _slots(kind: type) -> list[str]:
    """Names in the ``__slots__`` of this class itself, mangled as code outside of the class spells them."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]
    private = f"_{kind.__name__.lstrip('_')}"
    return [private + name if name.startswith("__") and not name.endswith("__") else name for name in names]
