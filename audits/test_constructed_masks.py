"""Known masks before the trained backbones. No audit is told where the mask is: each finds it by itself."""

from __future__ import annotations

import pytest
from torch import nn

from audits.defenses import MASKS
from pytest_gradmask import assert_clean_accuracy_retained, assert_gradient_masking, assert_near_identity
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

pytestmark = pytest.mark.gradmask

BACKBONES = ["resnet-standard", "vgg-standard", "resnet-adversarial"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backbone", BACKBONES, indirect=True)
def test_a_constructed_mask_is_found(gradmask: Gradmask, backbone: nn.Module, mask: str, eval_batch: EvalBatch) -> None:
    audit = gradmask.audit(nn.Sequential(MASKS[mask](), backbone).eval(), *eval_batch)
    assert audit.bypassed == ("0",)
    assert_gradient_masking(audit)


@pytest.mark.parametrize(
    ("composite", "backbone"), [(f"{name}-deep", name) for name in BACKBONES], indirect=True, ids=BACKBONES
)
def test_an_untrained_deep_front_end_masks(
    gradmask: Gradmask, composite: nn.Module, backbone: nn.Module, eval_batch: EvalBatch
) -> None:
    """A deep, calibrated, untrained front end with a skip connection hides the gradients of any backbone."""
    assert_near_identity(composite.get_submodule("front_end"), eval_batch.images, atol=0.05)
    assert_clean_accuracy_retained(composite, backbone, *eval_batch, within=0.1)
    audit = gradmask.audit(composite, *eval_batch)
    assert audit.bypassed == ("front_end",)
    assert_gradient_masking(audit)
