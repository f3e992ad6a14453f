"""Import objects of the user's code by name."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import Any

from pytest_gradmask.checks import is_a
from pytest_gradmask.errors import InputError

_MISSING = object()


def imported(what: str, target: str) -> Any:
    """Import a module and return the attribute that ``MODULE:ATTR`` names.

    Args:
        what: the argument and its value, for messages.
        target: module and attribute, both may have dots, such as ``my_project.models:Zoo.defense``.

    Raises:
        InputError: there is no such module or attribute, or importing the module raised an error.
    """
    name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        # True only if the module itself is missing, not a module that it imports.
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        hint = "; put its folder into pytest's ini value pythonpath, or install it" if missing else ""
        raise InputError(f"{what}: importing {name} raised {type(error).__name__}: {error}{hint}") from error
    for attribute in path.split("."):
        try:
            following = getattr(found, attribute, _MISSING)
        except (Exception, SystemExit) as error:  # a __getattr__ of the user
            raise InputError(f"{what}: reading {attribute!r} raised {type(error).__name__}: {error}") from error
        if following is _MISSING:
            public = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
            near = difflib.get_close_matches(attribute, public, n=5) or sorted(public)[:10]
            holder = found.__name__ if is_a(found, type, ModuleType) else type(found).__name__
            raise InputError(f"{what}: {holder} has no {attribute!r}; it has {', '.join(near) or 'nothing public'}")
        found = following
    return found


def called(what: str, target: str, kind: type) -> Any:
    """Import an object by ``MODULE:ATTR``. If it is not of this type, call it and return the result.

    Raises:
        InputError: see `imported`; also if the call raised an error, or if the result is not of this type.
    """
    found = imported(what, target)
    if is_a(found, kind):
        return found
    if not callable(found):
        raise InputError(f"{what}: is a {type(found).__name__}; must be a {kind.__name__}, or return one when called")
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: called without arguments, it raised {type(error).__name__}: {error}") from error
    if not is_a(made, kind):
        raise InputError(f"{what}: returned a {type(made).__name__}; must return a {kind.__name__}")
    return made
