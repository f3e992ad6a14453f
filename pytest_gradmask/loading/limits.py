"""The largest inputs that are loaded without being asked to: a small file may describe more than a machine can hold."""

from __future__ import annotations

import os

from pytest_gradmask.errors import InputError

#: Each limit with its default. An environment variable ``GRADMASK_MAX_...`` raises it.
_DEFAULTS = {
    "PIXELS": 100_000_000,  # of one image file
    "CLASSES": 100_000,  # of a network whose last layer is rebuilt for the weights of a file
    "BYTES": 20_000_000_000,  # of one array in an npz file
}


def check_limit(what: str, name: str, value: int) -> None:
    """Raise `InputError` if a value is above its limit.

    Args:
        what: the input, for the message.
        name: ``"PIXELS"``, ``"CLASSES"`` or ``"BYTES"``.
        value: how many of these it has.
    """
    variable = f"GRADMASK_MAX_{name}"
    text = os.environ.get(variable, str(_DEFAULTS[name]))
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"environment variable {variable}={text!r}: must be a whole number")
    if value > int(text):
        raise InputError(
            f"{what}: has {value} {name.lower()}, more than the limit of {text}; if that is meant, set the environment "
            f"variable {variable}={value}"
        )
