"""The global random generators of Python, NumPy and torch: seed them, and restore their state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> tuple[Any, ...]:
    """State of the global generators of Python, NumPy and torch."""
    return np.random.get_state(), *state_but_numpys(device)


def set_random_state(state: tuple[Any, ...], device: torch.device) -> None:
    """Restore a state of the global generators that `random_state` returned."""
    numpys, *others = state
    np.random.set_state(numpys)
    set_state_but_numpys(others, device)


def state_but_numpys(device: torch.device) -> tuple[Any, ...]:
    """As `random_state`, but without NumPy, whose state takes longer to read than all the others together."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), torch.get_rng_state(), cuda


def set_state_but_numpys(state: Sequence[Any], device: torch.device) -> None:
    """Restore a state that `state_but_numpys` returned."""
    python, cpu, cuda = state
    random.setstate(python)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the state of the global generators on exit."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


@contextmanager
def seeded_by(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, the global generators are seeded by the next number of ``generator``; on exit they are restored."""
    with random_state_kept(device):
        seed_everything(int(torch.randint(2**31, (1,), generator=generator)))
        yield


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside, weights drawn on the CPU depend on the seed alone. The global random state is restored on exit."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would seed the generators of GPUs too, which are not restored here.
        torch.default_generator.manual_seed(seed)
        yield
