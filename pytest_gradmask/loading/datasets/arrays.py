"""Data sets that are stored as arrays: npz files, and CIFAR by torchvision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.execution.files import cache_directory
from pytest_gradmask.loading.datasets.base import Array, Unread, as_tensor
from pytest_gradmask.loading.limits import check_limit
from pytest_gradmask.loading.specs import DataSpec

_NPZ_KEYS = {
    "test": (("test_x", "test_y"), ("images", "labels")),
    "train": (("train_x", "train_y"), ("images", "labels")),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}
#: In the order of labels.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def from_npz(file: Path, split: str, source: str, class_names: tuple[str, ...] = ()) -> Unread:
    """Read the arrays of an npz file. Pickled arrays are refused."""
    try:
        # Opened here, because numpy does not close a file that only looks like an archive.
        with file.open("rb") as stream, _archive(stream) as archive:
            for image_key, label_key in _NPZ_KEYS[split]:
                if image_key in archive and label_key in archive:
                    for key in (image_key, label_key):
                        _check_size(archive, key, file)
                    classes = len(class_names) or None
                    return _checked(archive[image_key], archive[label_key], str(file), source, classes, class_names)
            found = ", ".join(archive.files)
    except (DataError, InputError):
        raise
    except (Exception, MemoryError) as error:  # every kind of damage raises another error
        raise DataError(f"data file {file}: cannot be read as npz without pickles ({error})") from error
    wanted = " or ".join("/".join(keys) for keys in _NPZ_KEYS[split])
    raise DataError(f"data file {file}: no arrays named {wanted} (found: {found})")


def _check_size(archive: NpzFile, key: str, file: Path) -> None:
    """Compare what the header of an array promises with what is there, before memory is asked for."""
    entry = f"{key}.npy" if f"{key}.npy" in archive.zip.namelist() else key  # type: ignore[union-attr]
    with archive.zip.open(entry) as stream:  # type: ignore[union-attr]
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        promised = math.prod(shape) * dtype.itemsize
    held = archive.zip.getinfo(entry).file_size  # type: ignore[union-attr]
    if promised > held:
        raise DataError(f"data file {file}: array {key} is said to have {promised} bytes, and holds {held}")
    check_limit(f"data file {file}: array {key}", "BYTES", promised)


def _archive(stream: BinaryIO) -> NpzFile:
    loaded = np.load(stream, allow_pickle=False)
    if not isinstance(loaded, NpzFile):
        raise ValueError("it holds a single array; save images and labels with numpy.savez")
    return loaded


def _checked(
    images: Array, labels: Array, where: str, source: str, classes: int | None, class_names: tuple[str, ...]
) -> Unread:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{where}: images must be uint8 of shape N x H x W x 3 (or 1), got {images.dtype} {images.shape}"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "ui":
        raise DataError(
            f"{where}: labels must be {len(images)} integers, one per image, got {labels.dtype} {labels.shape}"
        )
    if len(images) == 0:
        raise DataError(f"{where}: holds no images")

    def read(some: Array) -> tuple[Tensor, Tensor]:
        return as_tensor(images[some]), torch.from_numpy(labels[some].astype(np.int64))

    return Unread(labels.tolist(), read, source, classes, class_names=class_names)


def from_torchvision(spec: DataSpec, split: str, *, download: bool) -> Unread:
    """CIFAR-10 or CIFAR-100; torchvision checks the hashes of its files, and shows the progress of a download."""
    from torchvision import datasets

    folder = Path(spec.path).expanduser() if spec.path else cache_directory()
    load = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[spec.kind]
    try:
        dataset = load(str(folder), train=split == "train", download=download)
    except Exception as error:  # torchvision, the network or a damaged archive may raise anything
        failed = f"could not download it into {folder}" if download else f"not usable in {folder}"
        hint = f"give its directory as {spec.kind}:ROOT"
        hint = f"without a network, {hint}" if download else f"pass --gradmask-download to fetch it, or {hint}"
        raise DataError(f"data {spec.kind!r}: {failed} ({error}); {hint}") from error
    images, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    return _checked(images, labels, str(folder), spec.text, _CLASSES[spec.kind], tuple(dataset.classes))
