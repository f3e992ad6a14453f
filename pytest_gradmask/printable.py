"""Texts of others (names, error messages, paths) in a form that every file and terminal can take."""

from __future__ import annotations

import re
from typing import Any

#: Control characters other than tab and newline, which a terminal may obey; marks that reverse the direction of what
#: follows; and lone surrogates, which stand for bytes that are no text and which no file can hold.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text, with each character that is not for display as its escape, such as ``\x1b`` or ``\udcff``."""
    return _UNPRINTABLE.sub(_escaped, text)


def one_line(text: str) -> str:
    """The text on one line and printable: at the start of a line, a name might be a command to who reads the log."""
    return printable(text).replace("\n", "\\n")


def printable_data(data: Any) -> Any:
    """Plain data (dicts, lists, tuples) in which all texts are printable."""
    return _mapped(data, printable)


def encodable_data(data: Any) -> Any:
    """Plain data in which all texts can be encoded. Control characters stay."""
    return _mapped(data, lambda text: _SURROGATES.sub(_escaped, text))


def _mapped(data: Any, change: Any) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, dict):
        return {_mapped(key, change): _mapped(value, change) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        entries = [_mapped(entry, change) for entry in data]
        return entries if isinstance(data, list) else tuple(entries)
    return data


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
