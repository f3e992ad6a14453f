"""The random numbers of a defense, separate from those of attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import mtrand

from pytest_gradmask.execution.generators import seed_everything, set_state_but_numpys, state_but_numpys


class RandomStream:
    """The random numbers of a defense.

    While the defense runs, the global random generators are in its state, and otherwise in the state of the attack. So
    an attack that sets the global seed, as AutoAttack does, neither repeats nor knows the noise of the defense.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._frozen = False
        # NumPy's generator is exchanged as an object. To copy its state takes longer than a small layer.
        self._numpy_generator = np.random.MT19937()
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Restart from a seed."""
        with self._exchanged():
            seed_everything(seed)
            self._state = state_but_numpys(self._device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set the global generators to this stream."""
        frozen_state = self._numpy_generator.state if self._frozen else None
        with self._exchanged():
            set_state_but_numpys(self._state, self._device)
            try:
                yield
            finally:
                if frozen_state is not None:
                    self._numpy_generator.state = frozen_state
                else:
                    self._state = state_but_numpys(self._device)

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Restore the global generators on exit. Inside, NumPy's generator is that of this stream."""
        outer_state, outer_generator = state_but_numpys(self._device), mtrand.get_bit_generator()
        numpy_state = np.random.get_state(legacy=False)  # the exchange loses the second of a pair of normal numbers
        mtrand.set_bit_generator(self._numpy_generator)
        try:
            yield
        finally:
            mtrand.set_bit_generator(outer_generator)
            if numpy_state["has_gauss"]:
                np.random.set_state(numpy_state)
            set_state_but_numpys(outer_state, self._device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """In this context, every use starts with the same random numbers, and so does the first use after it."""
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before
