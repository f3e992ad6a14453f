"""All that this folder takes from pytest-gradmask."""

from pytest_gradmask import (
    Composite,
    Dataset,
    Mixture,
    Proportion,
    ThreatModel,
    apgd,
    bypassed,
    load_dataset,
    pgd,
    transfer_matrix,
)
from pytest_gradmask.auditing.research import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    accuracy_bounds,
    clopper_pearson,
    folded,
    load_checkpoint,
    replaced,
)

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Composite",
    "Dataset",
    "Mixture",
    "Proportion",
    "ThreatModel",
    "accuracy_bounds",
    "apgd",
    "bypassed",
    "clopper_pearson",
    "folded",
    "load_checkpoint",
    "load_dataset",
    "pgd",
    "replaced",
    "transfer_matrix",
]
