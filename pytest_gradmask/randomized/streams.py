"""A defense's own random numbers, apart from those of attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import mtrand

from pytest_gradmask.execution.generators import seed_everything, set_state_but_numpys, state_but_numpys


class RandomStream:
    """A defense's own random numbers.

    The global generators belong to the defense while it runs and to the attack otherwise, so an attack that
    reseeds them (AutoAttack does) neither repeats nor learns the defense's noise.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._frozen = False
        # Swapped in whole: to copy NumPy's state in and out, and back, takes longer than a small layer.
        self._numpys = np.random.MT19937()
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Go on with the numbers of this seed."""
        with self._apart():
            seed_everything(seed)
            self._state = state_but_numpys(self._device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch the global generators to this stream."""
        kept = self._numpys.state if self._frozen else None
        with self._apart():
            set_state_but_numpys(self._state, self._device)
            try:
                yield
            finally:
                if kept is not None:
                    self._numpys.state = kept
                else:
                    self._state = state_but_numpys(self._device)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Put the global generators back on exit; inside, NumPy's is the one of this stream."""
        outside, numpys = state_but_numpys(self._device), mtrand.get_bit_generator()
        before = np.random.get_state(legacy=False)  # a swap loses the second of a pair of normal numbers
        mtrand.set_bit_generator(self._numpys)
        try:
            yield
        finally:
            mtrand.set_bit_generator(numpys)
            if before["has_gauss"]:
                np.random.set_state(before)
            set_state_but_numpys(outside, self._device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Draw the same numbers again in every use inside, and once more in the first one after it."""
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before
