"""The machines of a run: CPUs shared by workers, and one engine for all audits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_gradmask.plugin.stash import ENGINE, SETTINGS

if TYPE_CHECKING:
    from pytest_gradmask.execution.engine import Engine


@contextmanager
def share_of_cpus(config: pytest.Config) -> Iterator[None]:
    """Limit torch's threads to this worker's share of the CPUs, unless ``OMP_NUM_THREADS`` is set.

    Otherwise each worker of pytest-xdist would start a thread for every CPU, and they would slow each other down.
    """
    import torch

    workers, threads = config.stash[SETTINGS].workers, torch.get_num_threads()
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(threads, _cpus() // workers)))
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def running_engine(config: pytest.Config) -> Engine:
    """The engine of ``--gradmask-engine``. It is opened at the first audit and closed at the end of the run."""
    from pytest_gradmask.execution.engine import opened

    if ENGINE not in config.stash:
        settings, stack = config.stash[SETTINGS], ExitStack()
        config.stash[ENGINE] = stack.enter_context(opened(settings.engine, settings.torch_device))
        config.add_cleanup(stack.close)
    return config.stash[ENGINE]
