"""Fingerprints: hashes that agree for two objects if both compute the same, and differ if not, as far as possible.

What a defense computes depends on its weights, its other attributes and its code. All of it is read from memory and not
from files: the code of its functions and of the methods of its classes, what they refer to by name, in their own module
and in others, and the values that these names have now. Of installed packages, only the parts that it uses are
read, and the rest is told apart by version and by the installer's record of the files. Some objects cannot be hashed,
such as an open file: these have no fingerprint.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import random
import re
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.execution.bytecode import code_digest
from pytest_gradmask.execution.hashes import FingerprintError, content_of_plain, hash_of_plain, hash_of_tensor, hashed
from pytest_gradmask.execution.layout import attributes, beside_content, entries_of_module, hides_state
from pytest_gradmask.execution.origin import is_bound, is_filled, is_of_a_package, is_of_numpy, package_of, state
from pytest_gradmask.execution.packages import is_installed, package_identity
from pytest_gradmask.execution.references import Reached, reached

__all__ = ["FingerprintError", "fingerprint"]

#: Entries of classes that do not change what they compute, or that count what was made before in the process.
_CLASS_BOOKKEEPING = {
    "__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__",
    "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__module__",
    "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl", "_autograd_function_id",
}  # fmt: skip
#: Entries of `torch.nn.Module` that PyTorch itself replaces at the first `torch.compile` of a process. They run while a
#: module is made, and not in one that is made already.
_REPLACED_BY_COMPILE = {"__init__", "__setstate__", "___needs_generation_tag_patch"}
#: The flag of classes that a class statement or a call of ``type`` made. No others can be changed.
_MADE_BY_CODE = 1 << 9
#: A graph of more objects than this is that of a whole program and not of a defense.
_MOST_OBJECTS = 500_000
_PLAIN: set[type] = {
    type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...), type(NotImplemented),
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
}  # fmt: skip
#: Types of C whose objects are told apart by their names.
_NAMED = (
    types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.ClassMethodDescriptorType, np.ufunc,
)  # fmt: skip
_NamedField: type = type(collections.namedtuple("_", "field").field)  # type: ignore[attr-defined]
_Handler = Callable[[Any], Iterable[object]]


def fingerprint(*values: object) -> str:
    """Hash plain data, tensors, modules, functions, classes and objects made of them; 64 hexadecimal digits.

    Raises:
        FingerprintError: a value, or something that its code refers to, is of another kind.
    """
    try:
        return _Traversal().total(values).hex()
    except FingerprintError:
        raise
    except Exception as error:  # objects are not ours, and may refuse to be read
        raise FingerprintError(f"something that cannot be read ({type(error).__name__}: {error})") from error


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Setting:
    """An object that is hashed by its content, if it can be, also where it is of an installed type."""

    value: object


class _Traversal:
    """One traversal of the values to hash. An object met before, as in a cycle, is hashed by its number.

    Functions, classes and modules of code are hashed by their number everywhere, and their content once, at the end:
    the graph of calls may be deep.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # references, so that no other object takes over an id
        self._pending: deque[tuple[object, bool]] = deque()  # with whether it belongs to an installed package
        self._definitions: dict[type, _Handler] = {
            types.FunctionType: self._function,
            type: self._class,
            types.ModuleType: self._code_module,
        }
        self._kinds: dict[type, _Handler] = {
            torch.nn.Module: self._module,
            Tensor: lambda tensor: (hash_of_tensor(tensor),),
            np.ndarray: self._array,
            np.generic: lambda value: (repr(value.dtype), value.tobytes()),
            list: list.__iter__,
            tuple: tuple.__iter__,
            deque: lambda value: (value.maxlen, *deque.__iter__(value)),
            defaultdict: lambda value: (value.default_factory, *_items(value)),
            dict: lambda value: _items(value),
            types.MappingProxyType: lambda value: [entry for pair in value.items() for entry in pair],
            # Each entry by itself and sorted: the order of a set differs between runs.
            set: lambda value: sorted(_Traversal().total(entry) for entry in set.__iter__(value)),
            frozenset: lambda value: sorted(_Traversal().total(entry) for entry in frozenset.__iter__(value)),
            enum.Enum: lambda value: (value.name, value._value_),
            **{kind: functools.partial(content_of_plain, kind) for kind in (int, float, complex, str, bytes)},
            PurePath: lambda path: (str(path),),
            types.MethodType: lambda method: (method.__func__, method.__self__),
            functools.partial: lambda part: (part.func, part.args, part.keywords),
            functools._lru_cache_wrapper: lambda cached: (cached.__wrapped__,),
            functools.cached_property: lambda found: (found.func, found.attrname),
            property: lambda found: (found.fget, found.fset, found.fdel),
            classmethod: lambda found: (found.__func__,),
            staticmethod: lambda found: (found.__func__,),
            weakref.ref: lambda reference: (reference(),),
            _NamedField: lambda field: field.__reduce__()[1],
            re.Pattern: lambda pattern: (pattern.pattern, pattern.flags),
            np.dtype: lambda dtype: (repr(dtype),),
            random.Random: lambda generator: (state(generator, random._inst, random.Random.getstate),),
            np.random.Generator: lambda generator: (generator.bit_generator.state,),
            np.random.RandomState: lambda generator: (
                state(generator, np.random.mtrand._rand, lambda own: own.get_state(legacy=False)),
            ),
            torch.Generator: lambda generator: (state(generator, torch.default_generator, torch.Generator.get_state),),
            logging.Logger: lambda logger: (logger.name,),
        }

    def total(self, value: object) -> bytes:
        """Hash of a value and of all code that it refers to."""
        parts = [self.digest(value)]
        while self._pending:
            definition, installed = self._pending.popleft()
            handle = next(handle for kind, handle in self._definitions.items() if isinstance(definition, kind))
            digest = self._leniently if installed else self.digest
            parts.append(hashed(*(digest(entry) for entry in handle(definition))))
        return hashed(*parts)

    def digest(self, value: object) -> bytes:
        """Hash of one value, by its kind."""
        kind = type(value)
        if kind in _PLAIN:
            return hash_of_plain(value)
        if isinstance(value, Reached):
            digest = self._leniently if value.in_package else self.digest
            return hashed(".".join(value.names), digest(value.value))
        if id(value) in self._numbers:
            return hashed("again", str(self._numbers[id(value)]))
        if len(self._numbers) > _MOST_OBJECTS:
            raise FingerprintError(f"more than {_MOST_OBJECTS} objects")
        number = self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        if isinstance(value, tuple(self._definitions)):
            self._pending.append((value, is_of_a_package(value)))
            return hashed("defined", str(number))
        if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            bound = isinstance(value, types.MethodWrapperType) or is_bound(value)
            return self._hash_all("builtin", (str(value.__qualname__), value.__self__ if bound else package_of(value)))
        if kind.__name__ == "cython_function_or_method" and is_installed(str(getattr(value, "__module__", ""))):
            return hashed("cython", str(getattr(value, "__qualname__", "")), package_of(value))
        if isinstance(value, np.ufunc) and not is_of_numpy(value):
            raise FingerprintError(f"a NumPy function made of {value.__name__}")
        if isinstance(value, _NAMED):
            return hashed(kind.__name__, getattr(value, "__qualname__", value.__name__))
        if kind.__module__ in ("typing", "typing_extensions") or isinstance(
            value, (types.GenericAlias, types.UnionType)
        ):
            parts = ("__origin__", "__args__", "__metadata__", "__supertype__", "__bound__", "__constraints__")
            return self._hash_all("typing", (repr(value), *(getattr(value, part, None) for part in parts)))
        for base, handle in self._kinds.items():
            if isinstance(value, base):
                return hashed(self._hash_all(base.__name__, handle(value)), self._beyond(value, base))
        return self._object(value)

    def _hash_all(self, name: str, values: Iterable[object]) -> bytes:
        return hashed(name, *(self.digest(value) for value in values))

    def _leniently(self, value: object) -> bytes:
        """Hash of an entry of an installed class or function: whatever of it may be the user's, by replacement."""
        if isinstance(value, (list, tuple, dict, set, frozenset, types.MappingProxyType)) and len(value) > 1000:
            return hashed("of a package", type(value).__name__)
        if isinstance(value, Reached):
            return self.digest(value)
        if isinstance(value, _Setting):
            value = value.value
        elif type(value) not in _PLAIN and not isinstance(value, (*self._definitions, *_FOLLOWED)):
            kind = type(value)
            if is_installed(kind.__module__):
                return hashed("of a package", kind.__module__, kind.__qualname__)
        try:
            return self.digest(value)
        except FingerprintError:
            return hashed("of a package", type(value).__qualname__)

    def _function(self, function: types.FunctionType) -> Iterator[object]:
        code = function.__code__
        yield from (function.__qualname__, code_digest(code), function.__defaults__, function.__kwdefaults__)
        installed = is_of_a_package(function)
        closure = [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
        # A decorator of a package, around a function of the user's: its settings are the user's as well.
        decorates = any(isinstance(each, types.FunctionType) and not is_of_a_package(each) for each in closure)
        yield from map(_Setting, closure) if installed and decorates else closure
        yield from _items(dict(attributes(function)))
        if installed:
            yield package_of(function)
        else:
            yield from reached(function)

    def _class(self, kind: type) -> Iterator[object]:
        if not kind.__flags__ & _MADE_BY_CODE:
            yield f"{kind.__module__}.{kind.__qualname__}"
            return
        yield from (kind.__qualname__, type(kind), *kind.__bases__)
        if is_installed(kind.__module__):
            yield package_of(kind)
        ignored = _CLASS_BOOKKEEPING | (_REPLACED_BY_COMPILE if kind is torch.nn.Module else set())
        for name in sorted(vars(kind).keys() - ignored):
            yield from (name, vars(kind)[name])

    def _code_module(self, module: types.ModuleType) -> Iterator[object]:
        yield module.__name__
        if is_installed(module.__name__):
            yield package_identity(module.__name__.partition(".")[0])
            return
        yield None if type(module) is types.ModuleType else type(module)
        yield from _items(entries_of_module(vars(module)))

    def _module(self, module: torch.nn.Module) -> Iterable[object]:
        tensors = (*module._parameters.items(), *module._buffers.items())
        return (module.training, tensors, tuple(module._modules.items()))

    def _array(self, array: np.ndarray[Any, Any]) -> Iterable[object]:
        if array.dtype.hasobject:
            return (array.shape, *array.reshape(-1).tolist())
        return (repr((array.dtype, array.shape)), np.ascontiguousarray(array).tobytes())

    def _beyond(self, value: object, base: type) -> bytes:
        """Hash of what an object of a subclass has beside the content of the base class."""
        held = beside_content(value, base)
        if type(value) in (base, torch.nn.Parameter) and not held:
            return b""
        return self._hash_all("beyond", (type(value), held))

    def _object(self, value: object) -> bytes:
        kind, held = type(value), dict(attributes(value))
        if hides_state(kind) or not (hasattr(value, "__dict__") or held or kind is object):
            raise FingerprintError(f"{kind.__module__}.{kind.__qualname__}")
        return self._hash_all("object", (kind, held))


#: What is followed also where it belongs to an installed package.
_FOLLOWED = (
    types.MethodType, functools.partial, functools._lru_cache_wrapper, property, classmethod, staticmethod, Tensor,
    torch.nn.Module, list, tuple, dict, set, frozenset, types.MappingProxyType, np.ndarray,
)  # fmt: skip


def _items(mapping: dict[Any, Any]) -> Iterator[object]:
    kind = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict  # it has its own order
    return (entry for pair in kind.items(mapping) for entry in pair)
