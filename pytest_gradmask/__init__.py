"""pytest-gradmask: flag defenses that only look robust because gradient attacks fail on them.

The public names below are imported on first use: the plugin loads in every pytest run, and torch must not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gradmask.assertions import (
        assert_attack_passes_unit_test,
        assert_clean_accuracy_retained,
        assert_gradient_masking,
        assert_low_transferability,
        assert_members_diverse,
        assert_near_identity,
        assert_no_gradient_masking,
        assert_robust_accuracy,
    )
    from pytest_gradmask.auditing import audit
    from pytest_gradmask.datasets import load_dataset
    from pytest_gradmask.defense import Attack, Defense
    from pytest_gradmask.errors import GradmaskError
    from pytest_gradmask.matrix import TransferMatrix
    from pytest_gradmask.report.plots import plot_transfer_matrix
    from pytest_gradmask.results import Audit, Finding, Verdict
    from pytest_gradmask.sources import load_model
    from pytest_gradmask.threat import ThreatModel
    from pytest_gradmask.transfer import transfer_matrix

_HOMES = {
    "Attack": "defense",
    "Audit": "results",
    "Defense": "defense",
    "Finding": "results",
    "GradmaskError": "errors",
    "ThreatModel": "threat",
    "TransferMatrix": "matrix",
    "Verdict": "results",
    "assert_attack_passes_unit_test": "assertions",
    "assert_clean_accuracy_retained": "assertions",
    "assert_gradient_masking": "assertions",
    "assert_low_transferability": "assertions",
    "assert_members_diverse": "assertions",
    "assert_near_identity": "assertions",
    "assert_no_gradient_masking": "assertions",
    "assert_robust_accuracy": "assertions",
    "audit": "auditing",
    "load_dataset": "datasets",
    "load_model": "sources",
    "plot_transfer_matrix": "report.plots",
    "transfer_matrix": "transfer",
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
    "assert_attack_passes_unit_test",
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
