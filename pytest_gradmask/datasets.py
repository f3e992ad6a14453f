"""Labelled images from a one-line specification.

==================  ==========================================================================
``embedded``        the 20 CIFAR-10 test images that ship with the package
``cifar10[:ROOT]``  CIFAR-10 by torchvision, from ROOT (default ``~/.cache/pytest-gradmask``)
``cifar100[:ROOT]`` CIFAR-100, likewise
``imagefolder:DIR`` one folder a class, classes in sorted order
``npz:FILE``        arrays ``images``/``labels``, or ``test_x``/``test_y`` and ``train_x``/``train_y``
==================  ==========================================================================

Nothing is downloaded unless ``download=True``.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from pytest_gradmask.errors import DataError, InputError

SPLITS = ("test", "train")
_TORCHVISION = ("cifar10", "cifar100")
_NPZ_KEYS = {
    "test": (("test_x", "test_y"), ("images", "labels")),
    "train": (("train_x", "train_y"), ("images", "labels")),
}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images in memory.

    Attributes:
        images: float32, N x C x H x W, in [0, 1].
        labels: int64, N, in ``range(num_classes)``.
        source: the specification it was loaded from.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, samples: int, seed: int) -> Dataset:
        """This many of the images, chosen at random without replacement, in their order.

        Raises:
            InputError: there are not so many.
        """
        if not 1 <= samples <= len(self):
            raise InputError(
                f"samples {samples}: {self.source!r} has {len(self)} images; ask for 1 to {len(self)}, or bring more"
            )
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:samples])
        return Dataset(self.images[chosen], self.labels[chosen], self.source)


def check_spec(spec: str) -> str:
    """Return ``spec`` if it names a known kind of data whose path, if any, exists; raise `InputError` otherwise."""
    kind, _, path = spec.partition(":")
    if kind not in ("embedded", *_TORCHVISION, "imagefolder", "npz"):
        raise InputError(
            f"data {spec!r}: unknown kind {kind!r}; use embedded, cifar10[:ROOT], cifar100[:ROOT], "
            "imagefolder:DIR or npz:FILE"
        )
    if kind == "embedded" and path:
        raise InputError(f"data {spec!r}: 'embedded' takes no path")
    if kind in ("imagefolder", "npz"):
        if not path:
            raise InputError(f"data {spec!r}: give a path, as in {kind}:PATH")
        wanted = Path(path).expanduser()
        if not (wanted.is_dir() if kind == "imagefolder" else wanted.is_file()):
            what = "directory" if kind == "imagefolder" else "file"
            raise InputError(f"data {spec!r}: no such {what}: {wanted}")
    return spec


def load_dataset(
    spec: str, *, split: str = "test", samples: int | None = None, seed: int = 0, download: bool = False
) -> Dataset:
    """Load a data set.

    Args:
        spec: what to load; see the module's table.
        split: ``"test"`` or ``"train"``; ignored by ``embedded`` and ``imagefolder``.
        samples: take this many images at random (without replacement), all if ``None``.
        seed: seeds the choice of images, and nothing else.
        download: let torchvision download what is missing.

    Raises:
        InputError: unknown kind, missing path, more samples than images.
        DataError: unreadable or malformed data.
    """
    check_spec(spec)
    if split not in SPLITS:
        raise InputError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    kind, _, path = spec.partition(":")
    if kind == "embedded":
        images, labels = _from_npz(_embedded_file(), "test")
    elif kind == "npz":
        images, labels = _from_npz(Path(path).expanduser(), split)
    elif kind == "imagefolder":
        images, labels = _from_folder(Path(path).expanduser())
    else:
        images, labels = _from_torchvision(kind, path, split, download)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    dataset = Dataset(pixels.float() / 255, torch.from_numpy(labels.astype(np.int64)), spec)
    return dataset if samples is None else dataset.subset(samples, seed)


def _embedded_file() -> Path:
    from pytest_gradmask.checkpoints import fixtures_directory

    return fixtures_directory() / "cifar10-embedded.npz"


def _from_npz(file: Path, split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        # Opened here: numpy leaves a file open that looks like an archive and is none.
        with file.open("rb") as stream, _archive(stream) as archive:
            for image_key, label_key in _NPZ_KEYS[split]:
                if image_key in archive and label_key in archive:
                    return _checked(archive[image_key], archive[label_key], str(file))
            found = ", ".join(archive.files)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"data file {file}: cannot be read as npz without pickles ({error})") from error
    wanted = " or ".join("/".join(keys) for keys in _NPZ_KEYS[split])
    raise DataError(f"data file {file}: no arrays named {wanted} (found: {found})")


def _archive(stream: BinaryIO) -> NpzFile:
    loaded = np.load(stream, allow_pickle=False)
    if not isinstance(loaded, NpzFile):
        raise ValueError("it holds a single array; save images and labels with numpy.savez")
    return loaded


def _checked(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], where: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{where}: images must be uint8 of shape N x H x W x 3 (or 1), got {images.dtype} {images.shape}"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "ui":
        raise DataError(
            f"{where}: labels must be {len(images)} integers, one an image, got {labels.dtype} {labels.shape}"
        )
    if len(images) == 0:
        raise DataError(f"{where}: holds no images")
    return images, labels


def _from_folder(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from torchvision.datasets import ImageFolder

    try:
        dataset = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"image folder {folder}: {error}") from error
    images: list[np.ndarray[Any, Any]] = []
    for file, _ in dataset.samples:
        try:
            images.append(np.asarray(dataset.loader(file), dtype=np.uint8))
        except OSError as error:
            raise DataError(f"image file {file}: cannot be decoded ({error})") from error
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"image file {file}: shape {images[-1].shape} differs from {images[0].shape} of "
                f"{dataset.samples[0][0]}; resize the images to one size first"
            )
    return _checked(np.stack(images), np.asarray(dataset.targets), str(folder))


def _from_torchvision(
    kind: str, root: str, split: str, download: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from torchvision import datasets

    folder = Path(root or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/pytest-gradmask").expanduser()
    load = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    try:
        dataset = load(str(folder), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        hint = "" if download else " Pass --gradmask-download to fetch it, or give its directory as " + kind + ":ROOT."
        raise DataError(f"data {kind!r}: not usable in {folder} ({error}).{hint}") from error
    return _checked(np.asarray(dataset.data), np.asarray(dataset.targets), str(folder))
