"""Controls: models without a mask. A detector that flags them is worth nothing."""

from __future__ import annotations

import pytest
from torch import nn

from pytest_gradmask import assert_no_gradient_masking, assert_robust_accuracy
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

pytestmark = pytest.mark.gradmask


@pytest.mark.parametrize("backbone", ["resnet-standard", "vgg-standard"], indirect=True)
def test_an_undefended_backbone_is_weak_but_not_masked(
    gradmask: Gradmask, backbone: nn.Module, eval_batch: EvalBatch
) -> None:
    audit = gradmask.audit(backbone, *eval_batch)
    assert_no_gradient_masking(audit)
    assert audit.robust_accuracy.value <= 0.05


@pytest.mark.parametrize("backbone", ["resnet-adversarial"], indirect=True)
def test_an_adversarially_trained_backbone_is_robust_and_not_masked(
    gradmask: Gradmask, backbone: nn.Module, eval_batch: EvalBatch
) -> None:
    audit = gradmask.audit(backbone, *eval_batch)
    assert_no_gradient_masking(audit)
    assert_robust_accuracy(audit, at_least=0.1)
