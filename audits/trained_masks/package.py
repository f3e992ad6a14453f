"""All that this folder takes from pytest-gradmask."""

from pytest_gradmask.attacks.bpda import bypassed
from pytest_gradmask.attacks.gradient import apgd, pgd
from pytest_gradmask.checkpoints import load_checkpoint
from pytest_gradmask.datasets import Dataset, load_dataset
from pytest_gradmask.files import replaced
from pytest_gradmask.models.backbones import CIFAR10_MEAN, CIFAR10_STD
from pytest_gradmask.models.composites import Composite
from pytest_gradmask.threat import ThreatModel

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Composite",
    "Dataset",
    "ThreatModel",
    "apgd",
    "bypassed",
    "load_checkpoint",
    "load_dataset",
    "pgd",
    "replaced",
]
