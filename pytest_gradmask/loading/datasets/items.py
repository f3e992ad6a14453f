"""A torch data set of the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.checks import shown
from pytest_gradmask.errors import DataError
from pytest_gradmask.loading.datasets.base import Array, Unread
from pytest_gradmask.loading.datasets.pictures import grey_or_colour
from pytest_gradmask.loading.importing import called
from pytest_gradmask.loading.specs import DataSpec


def from_items(spec: DataSpec) -> Unread:
    """The items (image, label) of a map-style data set.

    If the data set has ``targets``, as those of torchvision have, its labels are known before the images are read. The
    number of classes is the length of its ``classes``, which are also their names.
    """
    found: Any = called(f"data {spec.text!r}", spec.path, torch.utils.data.Dataset)
    try:
        count = len(found)
        strata = _strata(found, count)
        listed = getattr(found, "classes", None)
        classes = len(listed) if isinstance(listed, Sequence) else None
        names = tuple(map(str, listed)) if isinstance(listed, Sequence) and not isinstance(listed, str) else ()
    except Exception as error:  # the user's code may raise anything
        if not hasattr(type(found), "__len__"):
            raise DataError(f"data {spec.text!r}: has no length; give a map-style data set") from error
        raise DataError(
            f"data {spec.text!r}: has no length, targets or classes to read ({type(error).__name__}: {error}); give "
            "a map-style data set"
        ) from error
    if not count:
        raise DataError(f"data {spec.text!r}: holds no images")

    def read(some: Array) -> tuple[Tensor, Tensor]:
        items = [_item(found, int(index), spec.text) for index in some]
        for index, (image, _) in zip(some, items, strict=True):
            if image.shape != items[0][0].shape:
                raise DataError(
                    f"data {spec.text!r}: image {index} has the shape {tuple(image.shape)}, image {some[0]} "
                    f"{tuple(items[0][0].shape)}; resize them to one"
                )
        return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])

    return Unread(strata, read, spec.text, classes, class_names=names)


def _strata(found: Any, count: int) -> list[int]:
    targets = np.asarray(getattr(found, "targets", ()))
    return targets.tolist() if targets.shape == (count,) and targets.dtype.kind in "ui" else [0] * count


def _item(found: Any, index: int, source: str) -> tuple[Tensor, int]:
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    where = f"data {source!r}: item {index}"
    try:
        image, label = found[index]
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"{where} cannot be read as (image, label): {type(error).__name__}: {error}") from error
    if isinstance(image, Image.Image):
        try:
            image = to_tensor(grey_or_colour(image))
        except Exception as error:  # damage is noticed when the pixels are read
            raise DataError(f"{where}: its image cannot be decoded ({type(error).__name__}: {error})") from error
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim != 3:
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"{where}: its image is {got}; must be floats C x H x W in [0, 1], or an image of Pillow")
    if not 0 <= image.min() <= image.max() <= 1:
        raise DataError(
            f"{where}: its image has values from {image.min():.3g} to {image.max():.3g}; must be in [0, 1]: leave the "
            "normalisation to the model"
        )
    try:
        number = np.asarray(label)
    except Exception as error:  # the object is not ours
        raise DataError(f"{where}: its label is {shown(label)}; must be a whole number from 0") from error
    if number.shape != () or number.dtype.kind not in "ui" or number < 0:
        raise DataError(f"{where}: its label is {shown(label)}; must be a whole number from 0")
    return image.detach().float(), int(number)
