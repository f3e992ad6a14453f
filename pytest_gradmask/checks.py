"""Checks of arguments. Each error names the argument, the value and what it must be, whatever the value is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from pytest_gradmask.errors import InputError
from pytest_gradmask.printable import printable

#: Longest text of a value in a message: the text of a large network has thousands of lines.
_LONGEST = 160
#: Most entries of a collection: an iterator may have no end.
_MOST = 10_000


def shown(value: object) -> str:
    """A value for a message: its ``repr`` on one line, shortened; its type where that raises."""
    try:
        text = " ".join(repr(value).split())
        return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
    except Exception:  # the object is not ours
        return f"<{type(value).__name__}, whose repr raises>"


def is_a(value: object, *kinds: type) -> bool:
    """As ``isinstance``, which an object can make raise."""
    try:
        return isinstance(value, kinds)
    except Exception:  # its __class__ raises
        return False


def refuse(argument: str, value: object, wanted: str) -> InputError:
    """The error of an argument, to be raised."""
    return InputError(f"{argument}={shown(value)}: must be {wanted}")


def check_is(argument: str, value: object, wanted: str, *kinds: type) -> None:
    """Raise `InputError` unless the value is of one of these types."""
    if not is_a(value, *kinds):
        raise refuse(argument, value, wanted)


def check_callable(argument: str, value: object, wanted: str) -> None:
    """Raise `InputError` unless the value can be called and is no class."""
    if not callable(value) or is_a(value, type):
        raise refuse(argument, value, wanted)


def check_whole(argument: str, value: object, least: int, most: int = 10**6) -> None:
    """Raise `InputError` unless the value is an integer of at least the one and at most the other."""
    if is_a(value, bool) or not is_a(value, int) or not least <= value <= most:  # type: ignore[operator]
        raise refuse(argument, value, f"a whole number of at least {least}, and of at most {most}")


def check_between(argument: str, value: object, low: float, high: float, example: str) -> None:
    """Raise `InputError` unless the value is a number above ``low`` and below ``high``."""
    number = as_number(value)
    if number is None or not low < number < high:
        raise refuse(argument, value, f"a number above {low:g} and below {high:g}, such as {example}")


def as_number(value: object) -> float | None:
    """The finite number that a value is; None for anything else, such as True or NaN."""
    if is_a(value, bool) or not is_a(value, int, float):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def listed(argument: str, value: Any, wanted: str, accept: Callable[[Any], bool]) -> list[Any]:
    """The entries of a collection, each of which must be accepted.

    Raises:
        InputError: it is no collection, or an entry is not accepted.
    """
    if is_a(value, str, bytes) or not is_a(value, Iterable):
        raise refuse(argument, value, wanted)
    try:
        entries = list(itertools.islice(value, _MOST + 1))
    except Exception as error:  # the object is not ours
        raise InputError(f"{argument}: reading its entries raised {type(error).__name__}: {error}") from error
    if len(entries) > _MOST:
        raise refuse(argument, value, f"{wanted}, and not more than {_MOST}")
    for entry in entries:
        if not accept(entry):
            raise InputError(f"{argument}: holds {shown(entry)}; must be {wanted}")
    return entries
