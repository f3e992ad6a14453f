"""Engines run attacks: one chunk of images after the other in this process, or many at once on a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from pytest_gradmask.checks import shown
from pytest_gradmask.errors import DependencyError, EngineError, InputError

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

#: Seconds that a cluster may take to answer.
ANSWER_TIMEOUT = 5.0


class Pending(Protocol[Result_co]):
    """Results in order, each computed by the time it is read. ``close`` cancels the chunks that still run."""

    def __iter__(self) -> Iterator[Result_co]: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """Runs work on chunks of images."""

    def start(self, work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> Pending[Result]:
        """Call ``work(*chunk)`` for every chunk, either now or when its result is read.

        Calls must not rely on shared state: a change that one call makes may or may not be visible to another.
        """


class Local:
    """Runs one chunk after the other in this process, each when its result is read."""

    def start(self, work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> Pending[Result]:
        """See `Engine.start`."""
        return _called(work, chunks)


def _called(work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> Generator[Result, None, None]:
    for chunk in chunks:
        yield work(*chunk)


LOCAL: Engine = Local()


def ray_address(spec: str) -> str | None:
    """The address of the Ray cluster in an engine's specification, or None if the engine is this process.

    Args:
        spec: ``"local"``; ``"ray"``, which is the cluster at ``RAY_ADDRESS`` or, if that is not set, a new cluster of
            this machine alone; or ``"ray:ADDRESS"``, such as ``"ray:10.0.0.1:6379"`` or ``"ray:auto"``.

    Returns:
        ``HOST:PORT``, ``ray://HOST:PORT``, ``"auto"`` (the cluster on this machine) or ``"local"`` (a new one).

    Raises:
        InputError: the specification is none of these.
    """
    kind, _, address = spec.partition(":")
    if spec == "local":
        return None
    if spec == "ray":
        return os.environ.get("RAY_ADDRESS") or "local"
    if kind != "ray" or not (address == "auto" or _host_and_port(address)):
        raise InputError(f"engine={shown(spec)}: must be local, ray, ray:HOST:PORT or ray:auto")
    return address


def check_engine(spec: str) -> None:
    """Check that an engine is available, without importing anything large.

    Raises:
        InputError: see `ray_address`.
        DependencyError: Ray is not installed.
        EngineError: no cluster answers at its address.
    """
    address = ray_address(spec)
    if address is None:
        return
    if importlib.util.find_spec("ray") is None:
        raise DependencyError(f"engine={shown(spec)} needs Ray; run: pip install 'pytest-gradmask[ray]'")
    endpoint = _host_and_port(address)
    if endpoint is None:
        return
    import socket  # not at the top: every run of pytest imports this module

    # Ray itself would wait for minutes and then end the process.
    try:
        socket.create_connection(endpoint, timeout=ANSWER_TIMEOUT).close()
    except OSError as error:
        raise EngineError(
            f"engine={shown(spec)}: no cluster answers at {address} ({error}); start one there with ray start --head, "
            "or give engine='ray' for a cluster of this machine alone"
        ) from error


def _host_and_port(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:  # the port is not a number
        return None


@contextmanager
def opened(spec: str, device: str) -> Iterator[Engine]:
    """Open an engine for work on a device. On exit, everything that was started for it is shut down.

    Raises:
        InputError, DependencyError, EngineError: see `check_engine`; also if the cluster has no such device.
    """
    address = ray_address(spec)
    if address is None:
        yield LOCAL
        return
    check_engine(spec)
    from pytest_gradmask.execution.ray_engine import connected

    with connected(address, device) as engine:
        yield engine
