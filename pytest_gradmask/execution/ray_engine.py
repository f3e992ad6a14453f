"""Run chunks of images on the workers of a Ray cluster.

Work is sent by pickle. This is safe here and only here: it goes from one process of the user to other processes of the
same user, through a cluster that runs any code it is sent.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import io
import os
import pickle  # nosec B403  # between processes of one user, as Ray itself does
import signal
import subprocess  # nosec B404  # runs Ray's own health check, below
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from pytest_gradmask.errors import EngineError, InputError, LostWorkerError
from pytest_gradmask.execution.versions import versions

Result = TypeVar("Result")

#: How often a chunk is tried again after its worker has died.
RETRIES = 3
_HEALTH_CHECK_TIMEOUT = 20.0  # seconds, most of them for Python to import Ray


@contextmanager
def connected(address: str, device: str) -> Iterator[RayEngine]:
    """Connect to a Ray cluster for work on a device. On exit, a cluster that was started here is shut down.

    Args:
        address: see `engine.ray_address`.
        device: ``"cpu"`` or ``"cuda"``; Ray chooses the GPU.

    Raises:
        InputError: the device is none of these.
        EngineError: there is no cluster, or it lacks the GPU that is needed.
    """
    if device not in ("cpu", "cuda", "cuda:0"):
        raise InputError(f"device={device!r}: on a Ray cluster Ray chooses the GPU; give device='cuda'")
    with ExitStack() as stack:
        ray = stack.enter_context(_session(address))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # One CPU per thread of a task, so that tasks do not compete for CPUs, but no more than a node has.
        cpus = min(torch.get_num_threads(), max(int(node.get("CPU", 0)) for node in nodes))
        resources = {"num_cpus": max(1, cpus), "num_gpus": 0}
        if device != "cpu":
            if not any(node.get("GPU", 0) >= 1 for node in nodes):
                raise EngineError(f"device={device!r}: the Ray cluster has no GPU; give device='cpu'")
            resources = {"num_cpus": 1, "num_gpus": 1}
        yield RayEngine(ray, resources)


#: Seconds that chunks have to end after they were interrupted.
_PATIENCE = 3.0


class RayEngine:
    """Runs as many chunks at once as the cluster has resources for.

    Args:
        ray: the package, connected to a cluster.
        resources: Ray's resources for one chunk.
    """

    def __init__(self, ray: Any, resources: dict[str, int]) -> None:
        self._ray = ray

        # A nested function is pickled by value, so a worker without this package can still report that it is missing.
        def task(paths: Sequence[str], *packed: Any) -> tuple[str, Any]:
            import sys

            sys.path += [path for path in paths if path not in sys.path]
            try:
                from pytest_gradmask.execution.ray_engine import execute
            except ImportError as error:
                return "refused", f"cannot import pytest-gradmask ({error}); install it there"
            return execute(*packed)

        # Ray retries only after a system error, such as the death of a worker. An exception of an attack is its result.
        self._task = ray.remote(max_retries=RETRIES, retry_exceptions=False, **resources)(task)

    def start(self, work: Callable[..., Result], chunks: Iterable[tuple[Any, ...]]) -> RayPending:
        """See `engine.Engine.start`. Every chunk gets a copy of the present state of ``work``.

        Raises:
            EngineError: ``work`` or a chunk cannot be pickled.
        """
        arithmetic, paths = _arithmetic(), [path for path in sys.path if path]
        packed = self._ray.put(_packed(work))
        expected = _expected()
        return RayPending(
            self._ray, [self._task.remote(paths, expected, arithmetic, packed, _packed(chunk)) for chunk in chunks]
        )


class RayPending:
    """Results of tasks, in order; see `engine.Pending`."""

    def __init__(self, ray: Any, tasks: Sequence[Any]) -> None:
        self._ray, self._waiting = ray, list(tasks)

    def __iter__(self) -> Iterator[Any]:
        while self._waiting:
            try:
                status, result = self._ray.get(self._waiting[0])
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                raise LostWorkerError(f"{type(error).__name__} after {RETRIES} retries: {reason}") from error
            self._waiting.pop(0)
            if status == "refused":
                raise EngineError(f"a Ray worker {result}")
            yield result

    def close(self) -> None:
        """End the chunks that are still running.

        A chunk is interrupted first. It may miss that, for example while it imports a package: then its worker is
        killed, or the cluster would go on with it.
        """
        for force in (False, True):
            for task in self._waiting:
                self._ray.cancel(task, force=force)
            if self._waiting:
                _, self._waiting = self._ray.wait(
                    self._waiting, num_returns=len(self._waiting), timeout=_PATIENCE, fetch_local=False
                )
        self._waiting.clear()


def execute(
    expected: dict[str, str], arithmetic: Sequence[Any], packed_work: bytes, packed_chunk: bytes
) -> tuple[str, Any]:
    """Run a chunk, on a worker.

    Args:
        expected: versions of packages in the process that sent the chunk.
        arithmetic: what `_arithmetic` returned in that process.
        packed_work: the function to call, from `_packed`.
        packed_chunk: its arguments, from `_packed`.

    Returns:
        ``"done"`` and the result, or ``"refused"`` and the reason.
    """
    found = _expected()
    if found != expected:
        wrong = [
            f"{name} {found.get(name)}, not {expected.get(name)}"
            for name in sorted({*found, *expected})
            if found.get(name) != expected.get(name)
        ]
        return "refused", f"has {'; '.join(wrong)}: results would differ"
    try:
        work, chunk = (
            torch.load(io.BytesIO(packed), pickle_module=pickle, weights_only=False)  # nosec B614  # see the module docstring
            for packed in (packed_work, packed_chunk)
        )
    except Exception as error:  # the code of the defense may raise anything
        return "refused", f"cannot load the defense ({type(error).__name__}: {error}); install its code there, too"
    _set_arithmetic(arithmetic)
    return "done", work(*chunk)


def _packed(value: object) -> bytes:
    cloudpickle = importlib.import_module("ray.cloudpickle")
    buffer = io.BytesIO()
    try:
        # torch.save keeps shared memory shared. Ray would send arrays that are read-only.
        torch.save(value, buffer, pickle_module=cloudpickle)
    except Exception as error:  # the defense's __reduce__ may raise anything
        raise EngineError(f"the defense cannot be sent to a Ray cluster ({error}); give engine='local'") from error
    return buffer.getvalue()


def _expected() -> dict[str, str]:
    return versions("pytest-gradmask", "torch", "torchvision", "pyautoattack", "autoattack")


def _arithmetic() -> tuple[Any, ...]:
    """Settings of this process that torch's results depend on."""
    cudnn = torch.backends.cudnn
    return (
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
    )  # fmt: skip


def _set_arithmetic(arithmetic: Sequence[Any]) -> None:
    cudnn = torch.backends.cudnn
    threads, dtype, grad, precision, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, exact, warn = arithmetic
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(exact, warn_only=warn)


@contextmanager
def _session(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster. A connection that the process already has is used and left open."""
    with ExitStack() as stack:
        # Ray sends no usage statistics and prints nothing to the terminal.
        with _environment_restored(stack, RAY_USAGE_STATS_ENABLED="0"), _hooks_restored():
            ray = importlib.import_module("ray")
            if ray.is_initialized():
                _check_same(ray, address)
            else:
                _connect(ray, address, stack)
        yield ray


def _connect(ray: Any, address: str, stack: ExitStack) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        # Not /tmp/ray, which Ray would not delete. The path is short: sockets in it may have about 100 characters.
        short = "/tmp" if Path("/tmp").is_dir() else None  # nosec B108  # a new private folder in it
        folder = tempfile.TemporaryDirectory(prefix="gradmask-", dir=short, ignore_cleanup_errors=True)
        options |= {"include_dashboard": False, "_temp_dir": stack.enter_context(folder)}
    elif ":" in address and "://" not in address:
        _check_health(address)
    stack.callback(ray.shutdown)
    try:
        ray.init(address=address, **options)
    except Exception as error:  # ConnectionError, RuntimeError or ValueError
        raise EngineError(f"cannot connect to a Ray cluster at {address!r}: {error}") from error


def _check_same(ray: Any, address: str) -> None:
    connected_to = ray.get_runtime_context().gcs_address
    if address not in ("local", "auto", connected_to, os.environ.get("RAY_ADDRESS")):
        raise EngineError(
            f"engine='ray:{address}': this process is connected to the Ray cluster at {connected_to}; give "
            "engine='ray' to use that one, or call ray.shutdown() before"
        )


def _check_health(address: str) -> None:
    """Run Ray's health check in a subprocess: if another program listens there, Ray itself would wait for minutes."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_HEALTH_CHECK_TIMEOUT)  # nosec B603  # no shell
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"what answers at {address} is not a Ray cluster") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EngineError(f"the Ray cluster at {address} refuses: {reason}")


@contextmanager
def _environment_restored(stack: ExitStack, **more: str) -> Iterator[None]:
    """Set variables. The stack later restores these and all others that changed inside, and no more."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        changed = [name for name, value in os.environ.items() if before.get(name) != value]
        stack.callback(_restore, {name: before.get(name) for name in changed})


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _hooks_restored() -> Iterator[None]:
    """Undo what Ray changes in the process that connects: the SIGTERM handler, and hooks for errors and breakpoints."""
    main = threading.current_thread() is threading.main_thread()
    handler, hook, faults = signal.getsignal(signal.SIGTERM), sys.excepthook, faulthandler.is_enabled()
    breakpoints = {"PYTHONBREAKPOINT": os.environ.get("PYTHONBREAKPOINT")}
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)
        sys.excepthook = hook
        if not faults:
            faulthandler.disable()
        _restore(breakpoints)
