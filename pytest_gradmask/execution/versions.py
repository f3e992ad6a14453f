"""Versions of the packages that numerical results depend on, to be stored with the results."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def versions(*distributions: str) -> dict[str, str]:
    """The version of Python and of each of these distributions, if it is installed."""
    found = {"python": platform.python_version()}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
