"""Folders of image files, decoded one by one when they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.checks import shown
from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.loading.class_folders import class_order, order_note
from pytest_gradmask.loading.datasets.base import Array, Unread, as_tensor
from pytest_gradmask.loading.datasets.pictures import eight_bits
from pytest_gradmask.loading.limits import check_limit
from pytest_gradmask.loading.specs import DataSpec

_LAYOUTS = (
    "an ImageNet folder has a folder for each class, named by its WordNet id (n01440764), or all images and a file "
    "labels.txt (or ?labels=FILE) of lines 'FILE LABEL'"
)


def from_folder(spec: DataSpec) -> Unread:
    """Image files in one folder per class. Folders named by numbers are in the order of these, others in text order."""
    samples, classes = _class_folders(spec)
    names = class_order(classes)
    number = {name: label for label, name in enumerate(names)}
    ordered = sorted(((file, number[classes[label]]) for file, label in samples), key=lambda sample: sample[1])
    return _unread(ordered, spec, names, order_note(classes))


def from_imagenet(spec: DataSpec) -> Unread:
    """ImageNet in one of its two layouts. Labels are numbered in the order of the sorted WordNet ids."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    ids = info.label_names()
    names = [info.index_to_description(index).split(",")[0] for index in range(len(ids))]  # the first of synonyms
    number = {name: index for index, name in enumerate(ids)}
    folder = Path(spec.path).expanduser()
    listing = spec.labels or folder / "labels.txt"
    if listing.is_file():
        by_number = {str(index): index for index in range(len(ids))}
        return _unread(_listed(listing, folder, number | by_number), spec, names)
    samples, classes = _class_folders(spec)
    unknown = [name for name in classes if name not in number]
    if unknown:
        raise DataError(f"data {spec.text!r}: {unknown[0]!r} in {folder} is not a class of ImageNet; {_LAYOUTS}")
    return _unread([(file, number[classes[label]]) for file, label in samples], spec, names)


def _class_folders(spec: DataSpec) -> tuple[list[tuple[str, int]], list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(Path(spec.path).expanduser()))
    except FileNotFoundError as error:
        layout = f"; {_LAYOUTS}" if spec.kind == "imagenet" else ""
        raise DataError(f"image folder {spec.path}: {error}{layout}") from error
    except OSError as error:
        raise DataError(f"image folder {spec.path}: cannot be read ({error})") from error
    return found.samples, found.classes


def _listed(listing: Path, folder: Path, number: dict[str, int]) -> list[tuple[str, int]]:
    """The image files and labels in a list with lines ``FILE LABEL``."""
    samples = []
    try:
        lines = listing.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"labels {listing}: cannot be read ({error})") from error
    for count, line in enumerate(lines, 1):
        name, label = (*line.rsplit(maxsplit=1), "", "")[:2]
        if label not in number:
            raise DataError(
                f"labels {listing}: line {count} is {shown(line)}, not 'FILE LABEL' with a WordNet id or 0 to 999"
            )
        if not os.path.isfile(folder / name):  # not the method of a path, which raises an error if a name is too long
            raise DataError(f"labels {listing}: line {count} names {shown(name)}, which is not in {folder}")
        samples.append((str(folder / name), number[label]))
    if not samples:
        raise DataError(f"labels {listing}: name no images")
    return samples


def _unread(samples: Sequence[tuple[str, int]], spec: DataSpec, class_names: Sequence[str], note: str = "") -> Unread:
    labels = [label for _, label in samples]

    def read(some: Array) -> tuple[Tensor, Tensor]:
        files = [samples[index][0] for index in some]
        images = [_decoded(file, spec.crop) for file in files]
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"image file {file}: shape {image.shape} differs from {images[0].shape} of {files[0]}; "
                    f"give one size, as in {spec.kind}:{spec.path}?size=224&resize=256"
                )
        return as_tensor(np.stack(images)), torch.tensor([labels[index] for index in some])

    return Unread(labels, read, spec.text, len(class_names), note, tuple(class_names))


def _decoded(file: str, crop: tuple[int, int] | None) -> Array:
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize

    try:
        with Image.open(file) as opened:
            check_limit(f"image file {file}", "PIXELS", opened.width * opened.height)
            image = eight_bits(opened).convert("RGB")
    except InputError:
        raise
    except Exception as error:  # every format and every kind of damage raises another error
        raise DataError(f"image file {file}: cannot be decoded ({error})") from error
    if crop is not None:
        image = center_crop(resize(image, [crop[0]]), [crop[1], crop[1]])
    return np.asarray(image, dtype=np.uint8)
