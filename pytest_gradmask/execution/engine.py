"""Where attacks run: one chunk of images after the other in this process, or many at once on a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from pytest_gradmask.errors import DependencyError, EngineError, InputError

Result = TypeVar("Result")
Made = TypeVar("Made", covariant=True)

#: How long a cluster may take to answer, in seconds.
PATIENCE = 5.0


class Pending(Protocol[Made]):
    """Results that are being worked out, in order; closing it ends what is still running."""

    def __iter__(self) -> Iterator[Made]: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """Works on chunks, somewhere."""

    def start(self, work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> Pending[Result]:
        """Call ``work(*chunk)`` for every chunk, now or when its result is asked for.

        Calls may share nothing: of what one changes, another may or may not see anything.
        """


class Local:
    """One chunk after the other, each when its result is asked for."""

    def start(self, work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> Pending[Result]:
        """See `Engine.start`."""
        return _called(work, chunks)


def _called(work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> Generator[Result, None, None]:
    for chunk in chunks:
        yield work(*chunk)


LOCAL: Engine = Local()


def ray_address(spec: str) -> str | None:
    """The address of the Ray cluster that an engine's specification names; None if it names this process.

    Args:
        spec: ``"local"``, ``"ray"`` (what ``RAY_ADDRESS`` names or, where that is not set, a cluster of this machine
            alone) or ``"ray:ADDRESS"``, as in ``"ray:10.0.0.1:6379"`` or ``"ray:auto"``.

    Returns:
        ``HOST:PORT``, ``ray://HOST:PORT``, ``"auto"`` (the one that runs on this machine) or ``"local"`` (a new one).

    Raises:
        InputError: another specification.
    """
    kind, _, address = spec.partition(":")
    if spec == "local":
        return None
    if spec == "ray":
        return os.environ.get("RAY_ADDRESS") or "local"
    if kind != "ray" or not (address == "auto" or _host_and_port(address)):
        raise InputError(f"engine={spec!r}: must be local, ray, ray:HOST:PORT or ray:auto")
    return address


def check_engine(spec: str) -> None:
    """Whether there is such an engine, without importing anything large.

    Raises:
        InputError: see `ray_address`.
        DependencyError: Ray is not installed.
        EngineError: nobody answers at its address.
    """
    address = ray_address(spec)
    if address is None:
        return
    if importlib.util.find_spec("ray") is None:
        raise DependencyError(f"engine={spec!r} needs Ray; run: pip install 'pytest-gradmask[ray]'")
    place = _host_and_port(address)
    if place is None:
        return
    import socket  # here: this module is imported in every run of pytest

    # Ray itself waits for minutes, and then ends the process.
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except OSError as error:
        raise EngineError(
            f"engine={spec!r}: nobody answers at {address} ({error}); start a cluster there with ray start --head, "
            "or give engine='ray' for one of this machine alone"
        ) from error


def _host_and_port(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:  # of a port that is no number
        return None


@contextmanager
def opened(spec: str, device: str) -> Iterator[Engine]:
    """An engine, for work on this device; what it takes to have it goes away on exit.

    Raises:
        InputError, DependencyError, EngineError: see `check_engine`; or the cluster has no such device.
    """
    address = ray_address(spec)
    if address is None:
        yield LOCAL
        return
    check_engine(spec)
    from pytest_gradmask.execution.ray_engine import connected

    with connected(address, device) as engine:
        yield engine
