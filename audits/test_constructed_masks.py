"""Known masks before the trained backbones. No audit is told where the mask is: each finds it by itself."""

from __future__ import annotations

import pytest
from torch import nn

from audits.defenses import MASKS
from pytest_gradmask import assert_gradient_masking
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

pytestmark = pytest.mark.gradmask

BACKBONES = ["resnet-standard", "vgg-standard", "resnet-adversarial"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backbone", BACKBONES, indirect=True)
def test_a_constructed_mask_is_found(gradmask: Gradmask, backbone: nn.Module, mask: str, eval_batch: EvalBatch) -> None:
    audit = gradmask.audit(nn.Sequential(MASKS[mask](), backbone).eval(), *eval_batch)
    assert audit.bypassed == ("0",)
    assert_gradient_masking(audit)
