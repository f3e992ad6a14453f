"""Fingerprints: hashes that agree for two objects if both compute the same, and differ if not, as far as possible.

What a defense computes depends on its weights, its other attributes and its code. The fingerprint of its code covers
the source files of its classes and functions, and all modules that these import. For installed packages, it takes the
version instead of the files. Some objects cannot be hashed, such as an open file or a class typed at a prompt: these
have no fingerprint.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import random
import struct
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.errors import GradmaskError

#: Attributes of modules that do not change what they compute, or that are hashed separately.
_BOOKKEEPING = {
    "_parameters",
    "_buffers",
    "_modules",
    "training",
    "_is_full_backward_hook",
    "_non_persistent_buffers_set",
}
_INSTALLED = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)

_POINTER = struct.calcsize("P")


class FingerprintError(GradmaskError):
    """An object cannot be hashed; the message names it."""


def fingerprint(*values: object) -> str:
    """Hash plain data, tensors, modules, functions, classes and objects made of them; 64 hexadecimal digits.

    Raises:
        FingerprintError: a value is of another kind, or its code has no file.
    """
    return _Traversal().digest(values).hex()


class _Traversal:
    """One traversal of the values to hash. An object met before, as in a cycle, is hashed by its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # references, so that no other object takes over an id
        # Cached for this traversal only: files may change before the next.
        self._source = functools.cache(source_fingerprint)
        self._handlers: dict[type, Callable[[Any], Iterable[object]]] = {
            torch.nn.Module: self._module,
            types.FunctionType: self._function,
            types.MethodType: lambda method: (method.__func__, method.__self__),
            functools.partial: lambda part: (part.func, part.args, part.keywords),
            type: self._class,
            types.ModuleType: lambda module: (module.__name__, self._source(module.__name__)),
            random.Random: lambda generator: (generator.getstate(),),
            np.random.Generator: lambda generator: (generator.bit_generator.state,),
            np.random.RandomState: lambda generator: (generator.get_state(legacy=False),),
            torch.Generator: lambda generator: (generator.get_state(),),
        }

    def digest(self, value: object) -> bytes:
        """Hash of one value, by its kind."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type(...), type(NotImplemented))):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, (enum.Enum, PurePath, torch.dtype, torch.device, torch.Size, np.generic, np.dtype, range)):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return self._hash_all("ndarray", [value.shape, *value.reshape(-1)])
            return _hash("ndarray", repr((value.dtype, value.shape)), np.ascontiguousarray(value).tobytes())
        if isinstance(value, (types.BuiltinFunctionType, types.BuiltinMethodType)) and not _bound(value):
            return _hash("builtin", repr(value.__module__), value.__qualname__)
        if id(value) in self._numbers:
            return _hash("again", str(self._numbers[id(value)]))
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        if isinstance(value, (list, tuple, deque)):
            return self._hash_all(type(value).__name__, value)
        if isinstance(value, (set, frozenset)):
            # Each entry by itself and sorted: the order of a set differs between runs.
            return _hash(type(value).__name__, *sorted(_Traversal().digest(entry) for entry in value))
        if isinstance(value, Mapping):
            return self._hash_all(type(value).__name__, [entry for pair in value.items() for entry in pair])
        for kind, handle in self._handlers.items():
            if isinstance(value, kind):
                return self._hash_all(kind.__name__, handle(value))
        return self._object(value)

    def _hash_all(self, name: str, values: Iterable[object]) -> bytes:
        return _hash(name, *(self.digest(value) for value in values))

    def _module(self, module: torch.nn.Module) -> Iterable[object]:
        attributes = {
            name: value
            for name, value in module.__dict__.items()
            # An empty dictionary of hooks changes nothing. A hook is code and is hashed.
            if name not in _BOOKKEEPING and not (name.startswith("_") and isinstance(value, dict) and not value)
        }
        tensors = (*module._parameters.items(), *module._buffers.items())
        return (type(module), module.training, attributes, tensors, tuple(module._modules.items()))

    def _function(self, function: types.FunctionType) -> Iterable[object]:
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        return (
            function.__qualname__, self._source(str(function.__module__)), _code(function.__code__),
            function.__defaults__, function.__kwdefaults__, cells,
        )  # fmt: skip

    def _class(self, kind: type) -> Iterable[object]:
        return (kind.__qualname__, self._source(kind.__module__))

    def _object(self, value: object) -> bytes:
        kind = type(value)
        attributes = dict(getattr(value, "__dict__", {}))
        for slot in (slot for base in kind.__mro__ for slot in _slots(base)):
            if hasattr(value, slot):
                attributes[slot] = getattr(value, slot)
        if _holds_more(kind) or not (hasattr(value, "__dict__") or attributes):
            raise FingerprintError(f"{kind.__module__}.{kind.__qualname__}")
        return self._hash_all("object", (kind, attributes))


def _hash(*parts: str | bytes) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.digest()


def _tensor(tensor: Tensor) -> bytes:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise FingerprintError(f"a tensor of layout {tensor.layout}")
    values = tensor.detach().cpu().contiguous()
    data = values.reshape(-1).view(torch.uint8).numpy() if values.numel() else np.zeros(0, np.uint8)
    return _hash("tensor", repr((values.dtype, tuple(values.shape))), data.tobytes())


def _bound(function: types.BuiltinFunctionType) -> bool:
    return not (function.__self__ is None or isinstance(function.__self__, types.ModuleType))


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _slots(kind: type) -> list[str]:
    """Names in the ``__slots__`` of this class itself, mangled as code outside of the class spells them."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]
    private = f"_{kind.__name__.lstrip('_')}"
    return [private + name if name.startswith("__") and not name.endswith("__") else name for name in names]


def _holds_more(kind: type) -> bool:
    """Whether objects are larger than their attributes need: types written in C have hidden state there."""
    pointers = sum(len(_slots(base)) for base in kind.__mro__)
    pointers += (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ > object.__basicsize__ + _POINTER * pointers or kind.__itemsize__ > 0


def _code(code: types.CodeType) -> tuple[object, ...]:
    constants = [_code(const) if isinstance(const, types.CodeType) else const for const in code.co_consts]
    return (code.co_code, constants, code.co_names)


def source_fingerprint(module: str) -> str:
    """Hash the code of a module and of all modules that it imports.

    Raises:
        FingerprintError: some of the code has no file.
    """
    pending: list[str] = [module]
    seen: set[str] = set()
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        package = name.partition(".")[0]
        if _installed(package):
            found.add(f"{package} {_version(package)}")
            continue
        imported = sys.modules.get(name)
        file = getattr(imported, "__file__", None)
        if file is None and hasattr(imported, "__path__"):  # a namespace package has no code
            continue
        if file is None or not Path(file).is_file():
            raise FingerprintError(f"code of module {name}, which has no file")
        found.add(f"{name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}")
        pending += [origin for value in list(vars(imported).values()) if (origin := _origin(value)) in sys.modules]
    return _hash(*sorted(found)).hex()


@functools.cache
def _installed(package: str) -> bool:
    """Whether a package came with Python or from an installer, so that its version identifies its code."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return package in sys.builtin_module_names or (
        file is not None and str(Path(file).resolve()).startswith(_INSTALLED)
    )


def _origin(value: object) -> str:
    """The module that a module's attribute comes from."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        value = type(value)
    return str(value.__module__)


@functools.cache
def _version(package: str) -> str:
    if package in sys.stdlib_module_names:
        return sys.version
    declared = getattr(sys.modules[package], "__version__", None)
    if isinstance(declared, str):
        return declared
    try:
        return ", ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(package, ()))))
    except PackageNotFoundError:
        return ""
