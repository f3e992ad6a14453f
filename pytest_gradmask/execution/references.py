"""The values that the code of a function refers to by name, as they are in memory now."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_gradmask.execution.bytecode import code_digest, references
from pytest_gradmask.execution.hashes import FingerprintError
from pytest_gradmask.execution.layout import entries_of_module
from pytest_gradmask.execution.packages import is_installed, is_installed_file, package_identity


class _Absent:
    """Stands for a name that has no value."""


ABSENT = _Absent()
_WORD = re.compile(r"[^\W\d][\w.]*")


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """A value that code refers to.

    Attributes:
        names: by which the code reaches it.
        value: what it is now.
        in_package: whether it was read from a module of an installed package.
    """

    names: tuple[str, ...]
    value: object
    in_package: bool = False


def reached(function: types.FunctionType) -> Iterator[Reached]:
    """What a function refers to: globals, attributes of modules, imports inside of it, and names in texts."""
    found, namespace = references(function.__code__), function.__globals__
    for names in found.names:
        yield _reached(names, namespace)
    package = str(namespace.get("__package__") or "")
    for module, level, wanted in found.imports:
        yield from _imported(module if not level else _absolute(module, level, package), wanted)
    if found.looks_up_any_name:
        yield Reached(("globals",), entries_of_module(namespace))
    # A text may name an environment variable, and in code that looks names up a global or a module.
    yield Reached(("texts",), tuple(found.texts))
    if found.reflective:
        for text in (text for text in found.texts if isinstance(text, str)):
            for word in _WORD.findall(text):
                if word in namespace:
                    yield _reached((word,), namespace)
                elif word in sys.modules and not is_installed(word):
                    yield Reached((word,), sys.modules[word])


def _reached(names: tuple[str, ...], namespace: Mapping[str, Any]) -> Reached:
    builtins = namespace.get("__builtins__", {})
    builtins = vars(builtins) if isinstance(builtins, types.ModuleType) else builtins
    value = namespace.get(names[0], builtins.get(names[0], ABSENT))
    in_package = False
    for name in names[1:]:
        if not isinstance(value, types.ModuleType):
            break
        in_package = is_installed(value.__name__)
        value = _attribute(value, name)
    return Reached(names, value, in_package)


def _attribute(module: types.ModuleType, name: str) -> object:
    if name in vars(module):
        return vars(module)[name]
    if f"{module.__name__}.{name}" in sys.modules:
        return sys.modules[f"{module.__name__}.{name}"]
    if is_installed(module.__name__):  # made when it is first asked for, which may be expensive
        return ABSENT
    try:
        return getattr(module, name)
    except Exception:  # the module is not ours
        return ABSENT


def _imported(module: str, wanted: tuple[str, ...]) -> Iterator[Reached]:
    """What an import statement inside a function gives. A module that is not loaded yet is read, and not run."""
    loaded = sys.modules.get(module)
    if loaded is None:
        names = module.split(".")
        for each in (".".join(names[:count]) for count in range(1, len(names) + 1)):  # its packages run before it
            yield Reached((each,), _loaded_or_code(each, set()))
    elif is_installed(module):
        yield Reached((module,), loaded)
        yield from (Reached((module, name), _attribute(loaded, name), in_package=True) for name in wanted)
    elif not wanted:  # the statement gives the outermost package
        top = module.partition(".")[0]
        yield from (Reached((name,), sys.modules[name]) for name in sorted({module, top}) if name in sys.modules)
    else:
        for name in wanted:
            value = _attribute(loaded, name)
            yield Reached((module, name), _unloaded(f"{module}.{name}", set()) if value is ABSENT else value)


def _absolute(module: str, level: int, package: str) -> str:
    try:
        return importlib.util.resolve_name("." * level + module, package)
    except ImportError:
        return module


def _loaded_or_code(module: str, seen: set[str]) -> object:
    return sys.modules[module] if module in sys.modules else _unloaded(module, seen)


def _unloaded(module: str, seen: set[str]) -> object:
    """Code of a module that nothing has imported so far, and of the modules that it imports."""
    if module in seen:
        return module
    seen.add(module)
    loader = _loader(module)
    if loader is None:
        return ABSENT
    if module in sys.builtin_module_names or is_installed_file(str(getattr(loader, "path", "") or "")):
        return module, package_identity(module.partition(".")[0])
    try:
        code = loader.get_code(module)
    except (SyntaxError, OSError, ImportError):
        code = None
    if code is None:
        return ABSENT
    found: list[object] = [code_digest(code)]
    package = module if loader.is_package(module) else module.rpartition(".")[0]
    for name, level, wanted in references(code).imports:
        imported = _absolute(name, level, package) if level else name
        each_name = (imported, *(f"{imported}.{inner}" for inner in wanted))
        found += [_loaded_or_code(each, seen) for each in each_name]
    return tuple(found)


def _loader(module: str) -> Any:
    """What would load a module, without an import of the packages that it is in; None if nothing would.

    Raises:
        FingerprintError: it gives no code.
    """
    path: Any = None
    spec = None
    names = module.split(".")
    for count in range(1, len(names) + 1):
        spec = _spec(".".join(names[:count]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    loader = None if spec is None else spec.loader
    if loader is None or isinstance(loader, importlib.machinery.ExtensionFileLoader):
        return None
    if not (hasattr(loader, "get_code") and hasattr(loader, "is_package")):
        raise FingerprintError(f"the module {module}, of which {type(loader).__name__} gives no code")
    return loader


def _spec(module: str, path: Any) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(module, path)
        except (AttributeError, ImportError, OSError, ValueError):
            continue
        if spec is not None:
            return spec
    return None
