"""pytest-gradmask: flag defenses that only look robust because gradient attacks fail on them.

The public names below are imported on first use: the plugin loads in every pytest run, and torch must not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gradmask.auditing.run import audit
    from pytest_gradmask.defense import Attack, Defense
    from pytest_gradmask.errors import GradmaskError
    from pytest_gradmask.loading.datasets import load_dataset
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
    from pytest_gradmask.report.plots import plot_transfer_matrix
    from pytest_gradmask.threat import ThreatModel
    from pytest_gradmask.transfer.matrix import TransferMatrix
    from pytest_gradmask.transfer.run import transfer_matrix
    from pytest_gradmask.verdict.audit import Audit
    from pytest_gradmask.verdict.results import Finding, Verdict

_HOMES = {
    "Attack": "defense",
    "Audit": "verdict.audit",
    "Defense": "defense",
    "Finding": "verdict.results",
    "GradmaskError": "errors",
    "ThreatModel": "threat",
    "TransferMatrix": "transfer.matrix",
    "Verdict": "verdict.results",
    "assert_attack_passes_binarization_test": "report.assertions",
    "assert_clean_accuracy_retained": "report.assertions",
    "assert_gradient_masking": "report.assertions",
    "assert_low_transferability": "report.assertions",
    "assert_members_diverse": "report.assertions",
    "assert_near_identity": "report.assertions",
    "assert_no_gradient_masking": "report.assertions",
    "assert_robust_accuracy": "report.assertions",
    "audit": "auditing.run",
    "load_dataset": "loading.datasets",
    "load_model": "loading.sources",
    "plot_transfer_matrix": "report.plots",
    "transfer_matrix": "transfer.run",
}

__all__ = [
    "Attack",
    "Audit",
    "Defense",
    "Finding",
    "GradmaskError",
    "ThreatModel",
    "TransferMatrix",
    "Verdict",
    "assert_attack_passes_binarization_test",
    "assert_clean_accuracy_retained",
    "assert_gradient_masking",
    "assert_low_transferability",
    "assert_members_diverse",
    "assert_near_identity",
    "assert_no_gradient_masking",
    "assert_robust_accuracy",
    "audit",
    "load_dataset",
    "load_model",
    "plot_transfer_matrix",
    "transfer_matrix",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"pytest_gradmask.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pytest_gradmask' has no attribute {name!r}")
