"""A random choice among composites: AutoAttack's attacks and Square largely fail, BPDA on the members does not."""

from __future__ import annotations

import pytest

from pytest_gradmask import Defense, assert_gradient_masking
from pytest_gradmask.models.composites import RandomizedEnsemble
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

# Exhaustive: the point is that Square, too, largely fails, so it must run although BPDA settles the verdict.
pytestmark = pytest.mark.gradmask(exhaustive=True)


def test_a_randomized_ensemble_of_composites_masks(
    gradmask: Gradmask, ensemble: RandomizedEnsemble, eval_batch: EvalBatch
) -> None:
    audit = gradmask.audit(Defense(ensemble, members=list(ensemble.members), name="standard-ensemble"), *eval_batch)
    assert_gradient_masking(audit)
    bpda, autoattack = audit.accuracy_under("bpda"), audit.autoattack_accuracy
    assert autoattack is not None
    assert bpda.value <= 0.2 < 0.6 <= autoattack.value, f"BPDA {bpda}, AutoAttack's attacks {autoattack}"
