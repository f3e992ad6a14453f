"""pytest-gradmask: flag defenses that only look robust because gradient attacks fail on them.

This module holds the public names. By topic:

- To describe a defense: `Defense`, `Attack`, `ThreatModel`, `PerturbationSet`, `Budget`.
- To audit it: `audit` returns an `Audit`. It holds a `Verdict`, a `Gap`, an `AttackResult` for each attack, `Finding`
  objects, and accuracies as `Proportion`. An audit of a randomized defense holds a `Prediction` for each image.
- To assert: the functions whose names start with ``assert_``.
- To write an adaptive attack: `bypassed` (BPDA) with `FromImages`, and the attacks `pgd` and `apgd`.
  `binarization_test` checks an attack and returns a `BinarizationTest`.
- To build and load models and data: `Composite`, `Mixture`, `RandomizedEnsemble`, `black_box`, `load_model`,
  `load_dataset`, `Dataset`.
- To measure transfer between models: `transfer_matrix`, `TransferMatrix`, `plot_transfer_matrix`.
- Errors: each derives from `GradmaskError`.

Each name is imported when it is first used, because the plugin loads in every pytest run and must not import torch.
`pytest_gradmask.auditing.research` has internals for research code, without any promise of compatibility.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gradmask.attacks.bypass.bpda import bypassed
    from pytest_gradmask.attacks.pgd import apgd, pgd
    from pytest_gradmask.auditing.budgets import Budget
    from pytest_gradmask.auditing.run import audit
    from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
    from pytest_gradmask.defense import Attack, Defense, FromImages
    from pytest_gradmask.errors import (
        AuditTimeoutError,
        CheckpointError,
        DataError,
        DefenseError,
        DependencyError,
        EngineError,
        GradmaskError,
        InputError,
    )
    from pytest_gradmask.loading.datasets import Dataset, load_dataset
    from pytest_gradmask.loading.models.black_box import black_box
    from pytest_gradmask.loading.models.composites import Composite, Mixture, RandomizedEnsemble
    from pytest_gradmask.loading.sources import load_model
    from pytest_gradmask.report.assertions import (
        assert_attack_passes_binarization_test,
        assert_clean_accuracy_retained,
        assert_gradient_masking,
        assert_low_transferability,
        assert_members_diverse,
        assert_near_identity,
        assert_no_gradient_masking,
        assert_robust_accuracy,
    )
    from pytest_gradmask.report.claims import assert_claim
    from pytest_gradmask.report.plots import plot_transfer_matrix
    from pytest_gradmask.threat import PerturbationSet, ThreatModel
    from pytest_gradmask.transfer.matrix import TransferMatrix
    from pytest_gradmask.transfer.run import transfer_matrix
    from pytest_gradmask.verdict.audit import Audit
    from pytest_gradmask.verdict.results import AttackResult, Finding, Gap, Prediction, Proportion, Verdict

_HOMES = {
    "Attack": "defense",
    "AttackResult": "verdict.results",
    "Audit": "verdict.audit",
    "AuditTimeoutError": "errors",
    "BinarizationTest": "binarization.run",
    "Budget": "auditing.budgets",
    "CheckpointError": "errors",
    "Composite": "loading.models.composites",
    "DataError": "errors",
    "Dataset": "loading.datasets",
    "Defense": "defense",
    "DefenseError": "errors",
    "DependencyError": "errors",
    "EngineError": "errors",
    "Finding": "verdict.results",
    "FromImages": "defense",
    "Gap": "verdict.results",
    "GradmaskError": "errors",
    "InputError": "errors",
    "Mixture": "loading.models.composites",
    "PerturbationSet": "threat",
    "Prediction": "verdict.results",
    "Proportion": "verdict.results",
    "RandomizedEnsemble": "loading.models.composites",
    "ThreatModel": "threat",
    "TransferMatrix": "transfer.matrix",
    "Verdict": "verdict.results",
    "apgd": "attacks.pgd",
    "assert_attack_passes_binarization_test": "report.assertions",
    "assert_claim": "report.claims",
    "assert_clean_accuracy_retained": "report.assertions",
    "assert_gradient_masking": "report.assertions",
    "assert_low_transferability": "report.assertions",
    "assert_members_diverse": "report.assertions",
    "assert_near_identity": "report.assertions",
    "assert_no_gradient_masking": "report.assertions",
    "assert_robust_accuracy": "report.assertions",
    "audit": "auditing.run",
    "binarization_test": "binarization.run",
    "black_box": "loading.models.black_box",
    "bypassed": "attacks.bypass.bpda",
    "load_dataset": "loading.datasets",
    "load_model": "loading.sources",
    "pgd": "attacks.pgd",
    "plot_transfer_matrix": "report.plots",
    "transfer_matrix": "transfer.run",
}

__all__ = [
    "Attack",
    "AttackResult",
    "Audit",
    "AuditTimeoutError",
    "BinarizationTest",
    "Budget",
    "CheckpointError",
    "Composite",
    "DataError",
    "Dataset",
    "Defense",
    "DefenseError",
    "DependencyError",
    "EngineError",
    "Finding",
    "FromImages",
    "Gap",
    "GradmaskError",
    "InputError",
    "Mixture",
    "PerturbationSet",
    "Prediction",
    "Proportion",
    "RandomizedEnsemble",
    "ThreatModel",
    "TransferMatrix",
    "Verdict",
    "apgd",
    "assert_attack_passes_binarization_test",
    "assert_claim",
    "assert_clean_accuracy_retained",
    "assert_gradient_masking",
    "assert_low_transferability",
    "assert_members_diverse",
    "assert_near_identity",
    "assert_no_gradient_masking",
    "assert_robust_accuracy",
    "audit",
    "binarization_test",
    "black_box",
    "bypassed",
    "load_dataset",
    "load_model",
    "pgd",
    "plot_transfer_matrix",
    "transfer_matrix",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"pytest_gradmask.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pytest_gradmask' has no attribute {name!r}")
