"""What an object holds: its attributes and slots, and whether it holds more than Python can see."""

from __future__ import annotations

import enum
import functools
import logging
import struct
from collections.abc import Iterator, Mapping
from pathlib import PurePath

import torch

_POINTER = struct.calcsize("P")
#: Attributes of every module, and those of them that do not change what it computes or that are hashed separately.
_OWN = frozenset(vars(torch.nn.Module()))
_BOOKKEEPING = {
    "_parameters",
    "_buffers",
    "_modules",
    "training",
    "_is_full_backward_hook",
    "_non_persistent_buffers_set",
}
#: Entries of modules of code that say where they come from.
_ABOUT_MODULES = {
    "__annotate__", "__annotations__", "__builtins__", "__cached__", "__conditional_annotations__", "__doc__",
    "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__",
}  # fmt: skip
#: What objects of these classes hold beside their content, but their classes make themselves.
_KNOWN: Mapping[type, frozenset[str]] = {
    enum.Enum: frozenset({"_name_", "_value_", "__objclass__", "_sort_order_", "name", "value", "_hash_"}),
    functools.cached_property: frozenset({"func", "attrname", "lock", "__doc__", "__module__"}),
    PurePath: frozenset(
        name for kind in type(PurePath()).__mro__ for name in getattr(kind, "__slots__", ()) if name.startswith("_")
    ),
}


def attributes(value: object) -> Iterator[tuple[str, object]]:
    """Name and value of each attribute and filled slot of an object itself.

    Left out are the notes of PyTorch's compiler: often addresses, which differ in each process.
    """
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        yield from ((name, entry) for name, entry in held.items() if not str(name).startswith("_torchdynamo"))
    for base in type(value).__mro__:
        for slot in _slots(base):
            descriptor = base.__dict__.get(slot)
            try:
                yield slot, descriptor.__get__(value, type(value))  # type: ignore[union-attr]
            except AttributeError:
                continue


def beside_content(value: object, base: type) -> dict[str, object]:
    """The attributes that an object has beside the content of a base class, and that change what it computes."""
    held = dict(attributes(value))
    if base is torch.nn.Module:
        return dict(_of_module(held))
    if base is logging.Logger:
        return {}
    return {name: entry for name, entry in held.items() if name not in _KNOWN.get(base, ())}


def entries_of_module(namespace: Mapping[str, object]) -> dict[str, object]:
    """The entries of a module of code, sorted, without those that say where it comes from."""
    return {name: namespace[name] for name in sorted(namespace) if name not in _ABOUT_MODULES}


def _of_module(held: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, entry in held.items():
        if name in _OWN and "hooks" in name and isinstance(entry, dict):
            # The keys count the hooks that the process has made so far. Those of the state dict run in no forward.
            of = held.get(name.removesuffix("_with_kwargs").removesuffix("_always_called"))
            places = list(of) if isinstance(of, dict) else []
            hooks = [(places.index(key) if key in places else None, hook) for key, hook in entry.items()]
            if hooks and "state_dict" not in name:
                yield name, hooks
        elif name not in _BOOKKEEPING:
            yield name, entry


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
