"""Images in memory, images that are read when they are wanted, and which of them a subset holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        classes: how many there are, whether or not an image shows each; None if the source does not tell.
    """

    images: Tensor
    labels: Tensor
    source: str
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, samples: int, seed: int) -> Dataset:
        """This many of the images, as `chosen` chooses them.

        Raises:
            InputError: there are not so many.
        """
        some = chosen(self.labels.tolist(), samples, seed, self.source)
        return Dataset(self.images[some], self.labels[some], self.source, self.classes)


@dataclass(frozen=True, slots=True)
class Unread:
    """Images that are read, decoded and resized only when they are wanted.

    Attributes:
        strata: the class of each image, or one for all where no label is known before its image is read.
        read: from indices to images and labels, as in `Dataset`.
        source: the specification.
        classes: as in `Dataset`.
    """

    strata: Sequence[int]
    read: Callable[[Array], tuple[Tensor, Tensor]]
    source: str
    classes: int | None

    def __len__(self) -> int:
        return len(self.strata)

    def load(self, samples: int | None, seed: int) -> Dataset:
        """This many of the images, as `chosen` chooses them; all if None.

        Raises:
            InputError: there are not so many.
            DataError: one cannot be read.
        """
        some = np.arange(len(self)) if samples is None else chosen(self.strata, samples, seed, self.source)
        return Dataset(*self.read(some), self.source, self.classes)


def chosen(strata: Sequence[int], samples: int, seed: int, source: str) -> Array:
    """Which images a subset holds: as many of each class as possible, at random within each, in their order.

    No class has two more than another, unless that has no more. The choice depends on nothing but the seed and each
    image's class and position: ranks come from SHA-256, not from a generator that a version may change. A larger subset
    of the same seed holds the smaller one.

    Raises:
        InputError: there are not so many.
    """
    if not 1 <= samples <= len(strata):
        raise InputError(
            f"samples {samples}: {source!r} has {len(strata)} images; ask for 1 to {len(strata)}, or bring more"
        )
    shuffled = sorted(range(len(strata)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    of_class: Counter[int] = Counter()
    turns = {}
    for index in shuffled:
        turns[index] = of_class[strata[index]]
        of_class[strata[index]] += 1
    return np.sort(sorted(shuffled, key=turns.__getitem__)[:samples])


def as_tensor(images: Array) -> Tensor:
    """Bytes N x H x W x C as float32 N x C x H x W in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
