"""Where functions, classes and other objects come from: whose code they are, and what they belong to."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from pytest_gradmask.execution.packages import is_installed, is_installed_file, package_identity


def state(generator: Any, of_all: object, read: Callable[[Any], object]) -> object:
    """The state of a random generator; not that of the global one, which audits seed."""
    return "global" if generator is of_all else read(generator)


def is_bound(function: types.BuiltinFunctionType) -> bool:
    """Whether it is a method of an object, or of a class of the user's, such as ``apply`` of an autograd function."""
    owner = function.__self__
    if isinstance(owner, type):
        return not is_installed(owner.__module__)
    return not (owner is None or isinstance(owner, types.ModuleType))


def is_of_numpy(function: np.ufunc) -> bool:
    """Whether a universal function is one of NumPy's or SciPy's own, and not of ``np.frompyfunc``."""
    owners = (np, sys.modules.get("scipy.special"))
    return any(getattr(owner, function.__name__, None) is function for owner in owners)


def is_filled(cell: types.CellType) -> bool:
    """Whether a variable of a closure has a value."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def is_of_a_package(definition: Any) -> bool:
    """Whether the code of a function or class is installed."""
    if isinstance(definition, types.FunctionType):
        return is_installed_file(definition.__code__.co_filename)
    return isinstance(definition, type) and is_installed(definition.__module__)


def package_of(definition: Any) -> str:
    """The module of a function or class, and what tells its package from other versions, if it is installed."""
    package = str(definition.__module__).partition(".")[0]
    return f"{definition.__module__} {package_identity(package) if is_installed(package) else ''}"
