"""Data sets in memory, data sets that are read on demand, and the choice of a subset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images in memory.

    Attributes:
        images: float32, N x C x H x W, in [0, 1].
        labels: int64, N, in ``range(num_classes)``.
        source: the specification it was loaded from.
        classes: number of classes, including those without an image; None if the source does not say.
        note: what is worth knowing about how it was read, for people; mostly empty.
        class_names: the name of each class, in the order of labels; empty if the source does not say.
    """

    images: Tensor
    labels: Tensor
    source: str
    classes: int | None = None
    note: str = ""
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, samples: int, seed: int) -> Dataset:
        """A subset of this many images; see `chosen`.

        Raises:
            InputError: there are fewer images.
        """
        some = chosen(self.labels.tolist(), samples, seed, self.source)
        return replace(self, images=self.images[some], labels=self.labels[some])


@dataclass(frozen=True, slots=True)
class Unread:
    """Images that are read, decoded and resized only when they are needed.

    Attributes:
        strata: the class of each image. If labels are only known after reading, the same number for all images.
        read: takes indices and returns images and labels, as in `Dataset`.
        source: the specification it is loaded from.
        classes, note, class_names: as in `Dataset`.
    """

    strata: Sequence[int]
    read: Callable[[Array], tuple[Tensor, Tensor]]
    source: str
    classes: int | None
    note: str = ""
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.strata)

    def load(self, samples: int | None, seed: int) -> Dataset:
        """Read this many images; see `chosen`. Read all if ``samples`` is None.

        Raises:
            InputError: there are fewer images.
            DataError: an image cannot be read.
        """
        some = np.arange(len(self)) if samples is None else chosen(self.strata, samples, seed, self.source)
        return Dataset(*self.read(some), self.source, self.classes, self.note, self.class_names)


def chosen(strata: Sequence[int], samples: int, seed: int, source: str) -> Array:
    """Choose the images of a subset, balanced over the classes and at random within each class; sorted indices.

    The class sizes in the subset differ by at most one, except for classes that have no more images. The choice depends
    only on the seed and on the class and position of each image. Ranks come from SHA-256, because random generators may
    change between versions. With the same seed, a larger subset contains the smaller one.

    Raises:
        InputError: there are fewer images.
    """
    if not 1 <= samples <= len(strata):
        raise InputError(
            f"samples {samples}: {source!r} has {len(strata)} images; ask for 1 to {len(strata)}, or bring more"
        )
    shuffled = sorted(range(len(strata)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    of_class: Counter[int] = Counter()
    ranks = {}
    for index in shuffled:
        ranks[index] = of_class[strata[index]]
        of_class[strata[index]] += 1
    return np.sort(sorted(shuffled, key=ranks.__getitem__)[:samples])


def as_tensor(images: Array) -> Tensor:
    """Convert uint8 images N x H x W x C to float32 N x C x H x W in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
