"""All that this folder takes from pytest-gradmask."""

from pytest_gradmask import (
    Composite,
    Dataset,
    Mixture,
    Proportion,
    RandomizedEnsemble,
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
    autoattack,
    clopper_pearson,
    folded,
    load_checkpoint,
    no_trace,
    replaced,
)

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Composite",
    "Dataset",
    "Mixture",
    "Proportion",
    "RandomizedEnsemble",
    "ThreatModel",
    "accuracy_bounds",
    "apgd",
    "autoattack",
    "bypassed",
    "clopper_pearson",
    "folded",
    "load_checkpoint",
    "load_dataset",
    "no_trace",
    "pgd",
    "replaced",
    "transfer_matrix",
]
