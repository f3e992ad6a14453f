"""Checks of the arguments of an audit that are neither images nor a defense nor a number."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_gradmask.auditing.events import Event, Progress
from pytest_gradmask.checks import check_callable, check_is, is_a, listed, refuse
from pytest_gradmask.errors import GradmaskError, InputError


def check_arguments(*, exhaustive: object, test: object, probes: object, engine: object, progress: object) -> None:
    """Raise `InputError` unless each is of its type."""
    check_is("exhaustive", exhaustive, "True or False", bool)
    check_is("test", test, "the name of a test, a text", str)
    check_is("probes", probes, "a list or tuple of functions", list, tuple)
    listed("probes", probes, "a list of functions", lambda probe: callable(probe) and not is_a(probe, type))
    if not (is_a(engine, str) or _starts(engine)):
        raise refuse("engine", engine, "local, ray, ray:HOST:PORT, ray:auto, or an engine that is open")
    check_callable("progress", progress, "a function of an event")


def _starts(engine: object) -> bool:
    try:
        return not is_a(engine, type) and callable(getattr(engine, "start", None))
    except Exception:  # the object is not ours
        return False


def reported_to(progress: Progress) -> Progress:
    """A progress function whose errors are named as such."""

    def report(event: Event) -> None:
        try:
            progress(event)
        except GradmaskError:
            raise
        except Exception as error:  # the function is not ours
            raise InputError(f"progress: raised {type(error).__name__} at {event}: {error}") from error

    return report


def as_folder(cache: object) -> Path | None:
    """The folder of a cache, which may be given as a text.

    Raises:
        InputError: it is no path.
    """
    if cache is None:
        return None
    check_is("cache", cache, "a folder, as a text or a Path, or None", str, os.PathLike)
    try:
        folder = Path(os.fspath(cache))  # type: ignore[call-overload]
        os.fsencode(folder)
    except Exception as error:  # the object is not ours
        raise refuse("cache", cache, f"a folder ({type(error).__name__})") from error
    if not str(cache) or "\0" in str(folder):
        raise refuse("cache", cache, "a folder, such as .gradmask-cache")
    return folder
