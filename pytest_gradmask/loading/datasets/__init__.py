"""Labelled images from a one-line specification.

=========================  ========================================================================================
``embedded``               the 20 CIFAR-10 test images that ship with the package
``cifar10[:ROOT]``         CIFAR-10 by torchvision, from ROOT (default ``~/.cache/pytest-gradmask``)
``cifar100[:ROOT]``        CIFAR-100, likewise
``imagenet:DIR``           ImageNet, in folders named by WordNet ids (``n01440764``), all or some of them; or in one
                           folder with a file ``labels.txt`` (or ``?labels=FILE``) of lines ``FILE LABEL``. LABEL is a
                           WordNet id or a number from 0 to 999, in the order of the sorted ids
``imagefolder:DIR``        one folder per class, classes in text order, or in that of numbers if all names are numbers
``npz:FILE``               arrays ``images``/``labels``, or ``test_x``/``test_y`` and ``train_x``/``train_y``
``dataset:MODULE:ATTR``    a torch ``Dataset`` of the user, or a function that returns one, with items (image, label);
                           an image is a tensor C x H x W in [0, 1] or an image of Pillow
=========================  ========================================================================================

Images of ImageNet are resized so that their shorter side has 256 pixels. Then the 224 x 224 pixels of the centre are
cropped. Other sizes are set by ``imagenet:DIR?size=299&resize=342``; with ``size`` alone, ``resize`` is ``size`` /
0.875, rounded. ``imagefolder`` takes the same options. Without them, its images must have one size and are not resized.
Nothing is downloaded unless ``download=True``.
"""

from __future__ import annotations

from pathlib import Path

from pytest_gradmask.checks import check_is, check_whole, is_a, shown
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.checkpoints import fixtures_directory
from pytest_gradmask.loading.datasets.arrays import CIFAR10, from_npz, from_torchvision
from pytest_gradmask.loading.datasets.base import Dataset, Unread
from pytest_gradmask.loading.datasets.folders import from_folder, from_imagenet
from pytest_gradmask.loading.datasets.items import from_items
from pytest_gradmask.loading.specs import check_data

__all__ = ["SPLITS", "Dataset", "Unread", "load_dataset", "open_dataset"]

SPLITS = ("test", "train")


def load_dataset(
    spec: str, *, split: str = "test", samples: int | None = None, seed: int = 0, download: bool = False
) -> Dataset:
    """Load a data set.

    Args:
        spec: specification; see the table of this module.
        split: ``"test"`` or ``"train"``, for data sets that have both.
        samples: number of images to take, balanced over the classes and at random within each. All if ``None``.
        seed: seed of the choice of images, and of nothing else; see `datasets.base.chosen`.
        download: let torchvision download what is missing.

    Raises:
        InputError: unknown kind, missing path, more samples than images, or the user's code returned no data set.
        DataError: unreadable or malformed data.
    """
    if samples is not None:
        check_is("samples", None if is_a(samples, bool) else samples, "a whole number, or None for all", int)
    check_whole("seed", seed, -(2**63), 2**63)
    return open_dataset(spec, split=split, download=download).load(samples, seed)


def open_dataset(spec: str, *, split: str = "test", download: bool = False) -> Unread:
    """As `load_dataset`, but image files are read only when their images are needed."""
    check_is("download", download, "True or False", bool)
    found = check_data(spec)
    if not is_a(split, str) or split not in SPLITS:
        raise InputError(f"split {shown(split)}: use one of {', '.join(SPLITS)}")
    if found.kind == "embedded":
        return from_npz(fixtures_directory() / "cifar10-embedded.npz", "test", spec, CIFAR10)
    if found.kind == "npz":
        return from_npz(Path(found.path).expanduser(), split, spec)
    if found.kind in ("cifar10", "cifar100"):
        return from_torchvision(found, split, download=download)
    return {"imagefolder": from_folder, "imagenet": from_imagenet, "dataset": from_items}[found.kind](found)
