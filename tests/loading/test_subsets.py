"""The choice of a subset: balanced over the classes, and a function of the seed alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pytest_gradmask.loading.datasets import Dataset, load_dataset
from pytest_gradmask.loading.datasets.base import chosen


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Sixty images of three classes, 30, 20 and 10, whose pixels encode their position."""
    images = np.repeat(np.arange(60, dtype=np.uint8), 12).reshape(60, 2, 2, 3)
    labels = np.repeat([0, 1, 2], [30, 20, 10])[np.random.default_rng(0).permutation(60)]
    np.savez(tmp_path / "uneven.npz", images=images, labels=labels)
    return tmp_path / "uneven.npz"


def positions(data: Dataset) -> list[int]:
    return (255 * data.images[:, 0, 0, 0]).round().int().tolist()


def test_subset_is_decided_by_its_seed(uneven: Path) -> None:
    def taken(seed: int) -> list[int]:
        return positions(load_dataset(f"npz:{uneven}", samples=10, seed=seed))

    assert taken(0) == taken(0) == sorted(set(taken(0)))
    assert len({tuple(taken(seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize(
    ("samples", "counts"), [(3, [1, 1, 1]), (30, [10, 10, 10]), (36, [13, 13, 10]), (60, [30, 20, 10])]
)
def test_subset_is_balanced_over_classes(uneven: Path, samples: int, counts: list[int]) -> None:
    assert load_dataset(f"npz:{uneven}", samples=samples).labels.bincount().tolist() == counts


@pytest.mark.parametrize("samples", [2, 20, 35])
def test_uneven_subset_differs_by_one_image(uneven: Path, samples: int) -> None:
    for seed in range(20):
        counts = load_dataset(f"npz:{uneven}", samples=samples, seed=seed).labels.bincount(minlength=3).tolist()
        assert sum(counts) == samples
        assert max(counts[:2]) - min(counts[:2]) <= 1


def test_extra_image_is_uniform_over_classes() -> None:
    more = Counter(int(index) % 3 for seed in range(1500) for index in chosen([0, 1, 2] * 5, 1, seed, "toys"))
    # 500 are expected of each; the standard deviation is 18.
    assert all(abs(more[label] - 500) < 5 * 18 for label in range(3))


def test_larger_subset_holds_the_smaller(uneven: Path) -> None:
    subsets = [set(positions(load_dataset(f"npz:{uneven}", samples=count, seed=4))) for count in range(1, 61)]
    assert all(smaller < larger for smaller, larger in pairwise(subsets))


def test_images_of_a_class_are_equally_likely() -> None:
    strata = [0, 1] * 10
    counts = Counter(int(index) for seed in range(2000) for index in chosen(strata, 4, seed, "toys"))
    # 400 are expected of each; the standard deviation is 18.
    assert set(counts) == set(range(20))
    assert all(abs(count - 400) < 5 * 18 for count in counts.values())


def test_subset_never_changes() -> None:
    """It must not depend on any version, because published figures depend on it."""
    assert chosen([0, 1, 2, 0, 1, 2, 0, 1], 4, 0, "toys").tolist() == [2, 3, 4, 7]
    assert chosen([7] * 1000, 5, 3, "toys").tolist() == [313, 478, 526, 668, 721]


def test_subset_in_memory_is_the_same(uneven: Path) -> None:
    everything, part = load_dataset(f"npz:{uneven}"), load_dataset(f"npz:{uneven}", samples=7, seed=5)
    assert torch.equal(everything.subset(7, 5).images, part.images)
    assert torch.equal(everything.subset(7, 5).labels, part.labels)
    assert torch.equal(everything.labels[positions(part)], part.labels)
