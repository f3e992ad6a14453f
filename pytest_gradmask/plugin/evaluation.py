"""The images that a run evaluates on, loaded once. Imports what needs torch when it is first used."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from pytest_gradmask.plugin.marker import read_marker
from pytest_gradmask.plugin.progress import uncaptured
from pytest_gradmask.plugin.stash import SETTINGS

if TYPE_CHECKING:
    from pytest_gradmask.loading.datasets import Dataset, Unread


def data_of(request: pytest.FixtureRequest) -> Dataset:
    """The images of ``eval_batch`` in a test, with what is known of their classes."""
    run_settings = request.config.stash[SETTINGS]
    settings, download = read_marker(request.node, run_settings), run_settings.download
    with uncaptured(request.config, wanted=download):
        return _load(run_settings.data, settings.samples, settings.budget.samples, settings.seed, download=download)


@functools.lru_cache(maxsize=2)
def _load(spec: str, samples: int | None, at_most: int, seed: int, *, download: bool) -> Dataset:
    data = _open(spec, download=download)
    # If no number of images was asked for, it is the budget's, or all images if there are fewer.
    return data.load(min(at_most, len(data)) if samples is None else samples, seed)


@functools.lru_cache(maxsize=2)
def _open(spec: str, *, download: bool) -> Unread:
    from pytest_gradmask.loading.datasets import open_dataset

    return open_dataset(spec, download=download)
