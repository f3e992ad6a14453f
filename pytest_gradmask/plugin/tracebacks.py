"""Tracebacks of errors that we raise deliberately: they show where the user's code is, and not where ours is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType

import pytest

from pytest_gradmask import errors

_PACKAGE = Path(errors.__file__).parent


def shorten_traceback(info: pytest.ExceptionInfo[BaseException] | None) -> None:
    """Leave only the user's frames in the traceback of an error of ours, and of the exceptions that it comes from.

    Any other exception that passes through our code may be a fault of it, and keeps its traceback.
    """
    if info is None or not isinstance(info.value, errors.GradmaskError):
        return
    hidden = [_PACKAGE, *_folder_of("torch")]
    shortened = _without(info.tb, hidden)
    if shortened is not None:
        info.traceback = type(info.traceback)(shortened)
    seen: set[BaseException] = {info.value}
    cause = info.value.__cause__ or info.value.__context__
    while cause is not None and cause not in seen:
        seen.add(cause)
        cause.__traceback__ = _from_the_first_outside(cause.__traceback__, hidden)
        cause = cause.__cause__ or cause.__context__


def _without(traceback: TracebackType | None, hidden: list[Path]) -> TracebackType | None:
    """A copy without the frames of these folders. pytest cuts raw tracebacks, which forgets its own filters."""
    if traceback is None:
        return None
    rest = _without(traceback.tb_next, hidden)
    if _inside(traceback, hidden):
        return rest
    return TracebackType(rest, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)


def _from_the_first_outside(traceback: TracebackType | None, hidden: list[Path]) -> TracebackType | None:
    while traceback is not None and _inside(traceback, hidden):
        traceback = traceback.tb_next
    return traceback


def _inside(traceback: TracebackType, folders: list[Path]) -> bool:
    file = Path(traceback.tb_frame.f_code.co_filename)
    # The constructor that dataclasses make has no file; context managers are ours.
    return file.name.startswith("<") or file.name == "contextlib.py" or any(each in file.parents for each in folders)


def _folder_of(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
