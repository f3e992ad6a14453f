"""The images and labels that people have, as the batch that is audited: arrays, pictures, data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.errors import DataError, GradmaskError, InputError
from pytest_gradmask.loading.datasets.base import chosen
from pytest_gradmask.loading.datasets.pictures import grey_or_colour
from pytest_gradmask.verdict.results import Finding

_IMAGE_KEYS = ("image", "images", "img", "pixel_values", "inputs", "x")
_LABEL_KEYS = ("label", "labels", "target", "targets", "fine_label", "class", "y")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and labels as tensors.

    Attributes:
        images: N x C x H x W, as far as what was given has this form; the preflight checks it.
        labels: N, likewise.
        changes: what was converted that a reader should know, in words.
    """

    images: Tensor
    labels: Tensor
    changes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def findings(self) -> list[Finding]:
        """The changes as a finding, if there are any."""
        return [Finding("converted-input", "; ".join(self.changes))] if self.changes else []


def as_batch(images: Any, labels: Any, *, bounds: tuple[float, float], at_most: int, seed: int) -> Batch:
    """Images and labels, in any usual form, as tensors.

    Args:
        images: float32 tensors N x C x H x W are taken as they are. Arrays of NumPy, lists of tensors, of arrays or of
            pictures of Pillow, and ``uint8`` are converted. Without labels: a `torch.utils.data.DataLoader`, a
            map-style data set, or a mapping, whose items are pairs or mappings of images and labels.
        labels: as many numbers, of shape N or N x 1; None if ``images`` has them.
        bounds: smallest and largest value of a pixel. ``uint8`` is divided by 255 if they are (0, 1).
        at_most: how many images of a loader or a data set are taken; of a data set, at random.
        seed: of that choice.

    Raises:
        InputError: these are no images and labels.
        DataError: an item of a data set cannot be read.
    """
    try:
        return _converted(images, labels, bounds, at_most, seed)
    except GradmaskError:
        raise
    except Exception as error:  # an object of the user's, whose methods may raise anything
        raise InputError(
            f"images, labels: cannot be read ({type(error).__name__}: {error}); give float32 tensors N x C x H x W and "
            "whole numbers N"
        ) from error


def _converted(images: Any, labels: Any, bounds: tuple[float, float], at_most: int, seed: int) -> Batch:
    if isinstance(images, Batch):
        return images
    changes: list[str] = []
    if labels is None:
        images, labels = _pair(images, at_most, seed, changes)
    if isinstance(images, (list, tuple)):
        images = _stacked(images)
    if isinstance(images, np.ndarray):
        images = _from_array(images, changes)
    if isinstance(images, Tensor) and images.dtype == torch.uint8 and tuple(bounds) in ((0.0, 1.0), (0.0, 255.0)):
        scale = 255 if tuple(bounds) == (0.0, 1.0) else 1
        images = images.float() / scale
        if scale == 255:
            changes.append("images were uint8, and were divided by 255")
    return Batch(images, _labels(labels, changes), tuple(dict.fromkeys(changes)))


def _labels(labels: Any, changes: list[str]) -> Any:
    if isinstance(labels, (list, tuple, np.ndarray)):
        try:
            labels = torch.as_tensor(np.asarray(labels))
        except (TypeError, ValueError) as error:
            raise InputError(f"labels: cannot be made a tensor ({error}); give one whole number an image") from error
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == 1:
        changes.append("labels were of shape N x 1")
        return labels[:, 0]
    return labels


def _from_array(images: np.ndarray[Any, Any], changes: list[str]) -> Tensor:
    """An array as a tensor N x C x H x W; floats as float32."""
    if images.dtype.kind not in "fiu":
        raise InputError(f"images: an array of {images.dtype}; use numbers, or a list of pictures")
    if images.ndim == 3 and images.shape[-1] not in _CHANNELS:
        images = images[:, None]
        changes.append("images without a channel axis were given one")
    elif images.ndim == 4 and images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
        changes.append("images were N x H x W x C, and were permuted")
    tensor = torch.from_numpy(np.array(images))  # a copy: the array may be read-only
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _stacked(images: Sequence[Any]) -> Tensor:
    """A list of images as one tensor."""
    if not images:
        raise InputError("images: the list is empty; there is no image to attack")
    tensors = [_image(image) for image in images]
    for number, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype):
            raise InputError(
                f"images: number {number} is {tensor.dtype} {tuple(tensor.shape)}, number 0 is {tensors[0].dtype} "
                f"{tuple(tensors[0].shape)}; bring them to one size and type"
            )
    return torch.stack(tensors)


def _image(image: Any) -> Tensor:
    """One image, C x H x W: a tensor, an array, or a picture of Pillow."""
    from PIL import Image

    if isinstance(image, Image.Image):
        image = np.asarray(grey_or_colour(image))
    if isinstance(image, np.ndarray):
        if image.ndim == 1:
            return torch.from_numpy(image.astype(np.float32))
        return _from_array(image[None] if image.ndim == 3 else image[None, :, :, None], [])[0]
    if isinstance(image, Tensor):
        return image
    raise InputError(f"images: holds {type(image).__name__}; give tensors, arrays of NumPy, or pictures of Pillow")


def _pair(source: Any, at_most: int, seed: int, changes: list[str]) -> tuple[Any, Any]:
    """Images and labels of something that has both."""
    if isinstance(source, (Mapping, tuple)) and (len(source) == 2 or isinstance(source, Mapping)):
        return _split(source, "images")
    if isinstance(source, (Tensor, np.ndarray)):
        raise InputError("labels: missing; give them, or a DataLoader or data set that has images and labels")
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return _of_items(source, at_most, seed, changes)
    if isinstance(source, Iterable):
        return _of_batches(source, at_most, changes)
    raise InputError(
        f"images: {type(source).__name__} without labels; give tensors and labels, a DataLoader or a map-style data set"
    )


def _of_items(source: Any, at_most: int, seed: int, changes: list[str]) -> tuple[Any, Any]:
    """Single items of a map-style data set, at random."""
    total = len(source)
    if not total:
        raise InputError(f"images: {type(source).__name__} holds no images")
    some = chosen([0] * total, min(at_most, total), seed, type(source).__name__)
    items = [_split(_read(source, int(index)), f"item {index} of {type(source).__name__}") for index in some]
    if total > at_most:
        changes.append(f"{at_most} of the {total} images of {type(source).__name__}, at random")
    images, labels = zip(*items, strict=True)
    return list(images), [_label(label) for label in labels]


def _read(source: Any, index: int) -> Any:
    try:
        return source[index]
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"item {index} of {type(source).__name__} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _of_batches(source: Iterable[Any], at_most: int, changes: list[str]) -> tuple[Any, Any]:
    """The first images of a loader, whose items are batches."""
    taken: list[tuple[Any, Any]] = []

    def single() -> Iterator[tuple[Any, Any]]:
        for batch in source:
            images, labels = _split(batch, f"a batch of {type(source).__name__}")
            if np.ndim(labels) == 0:  # one image, as of an iterable data set
                yield images, labels
            else:
                yield from zip(images, labels, strict=True)

    taken = list(islice(single(), at_most))
    if not taken:
        raise InputError(f"images: {type(source).__name__} gives no images")
    if len(taken) == at_most:
        changes.append(f"the first {at_most} images of {type(source).__name__}")
    images, labels = zip(*taken, strict=True)
    return list(images), [_label(label) for label in labels]


def _label(label: Any) -> int:
    array = np.asarray(label)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise InputError(f"labels: {label!r} is not one whole number")
    return int(array.reshape(()))


def _split(item: Any, where: str) -> tuple[Any, Any]:
    """Image and label of a pair or of a mapping."""
    if isinstance(item, Mapping):
        keys = [next((key for key in known if key in item), None) for known in (_IMAGE_KEYS, _LABEL_KEYS)]
        if None in keys:
            raise InputError(
                f"{where}: has the keys {', '.join(map(str, item))}; needs one of {', '.join(_IMAGE_KEYS)} and one of "
                f"{', '.join(_LABEL_KEYS)}"
            )
        return item[keys[0]], item[keys[1]]
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise InputError(f"{where}: is {type(item).__name__}; must be a pair (image, label) or a mapping with both")
