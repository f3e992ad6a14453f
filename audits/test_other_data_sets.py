"""Claim 1 on CIFAR-100 and ImageNet, with data and weights that you provide.

CIFAR-100: train ``fixtures/cifar100/resnet-standard.toml`` and ``fixtures/cifar100/resnet-composite.toml`` first, then
``--gradmask-data=cifar100``. ImageNet: ``--gradmask-data=imagenet:VAL --imagenet-weights=FILE``, a state dict of
timm's ``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import pytest

from audits.conftest import Reproduction
from audits.measures import correct_under_attacks, figures, is_correct, listed, plain, share, shares, summary
from pytest_gradmask import Composite, Defense, ThreatModel, Verdict, bypassed, load_model
from pytest_gradmask.auditing.research import available, calibrated_front_end
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

pytestmark = [pytest.mark.gradmask, pytest.mark.slow]


def test_a_composite_masks_on_cifar100(
    gradmask: Gradmask, eval_batch: EvalBatch, reproduction: Reproduction, request: pytest.FixtureRequest
) -> None:
    """Claim 1, on CIFAR-100."""
    if "cifar100" not in (request.config.option.gradmask_data or ""):
        pytest.skip("needs CIFAR-100: --gradmask-data=cifar100")
    if "cifar100-resnet-composite" not in available():
        pytest.skip("needs fixtures/cifar100-resnet-composite; train its recipe")
    audit = gradmask.audit(Defense(load_model("cifar100-resnet-composite"), name="CIFAR-100, resnet"), *eval_batch)
    reproduction.check(
        "1",
        holds=audit.verdict is Verdict.MASKED,
        ours=summary(audit),
        images=audit.total,
        details={"audits": [figures(audit)]},
    )


def test_a_composite_masks_on_imagenet(
    eval_batch: EvalBatch, reproduction: Reproduction, request: pytest.FixtureRequest
) -> None:
    """Claim 1, on ImageNet at 4/255, with an untrained front end calibrated on the images of the audit."""
    weights = request.config.getoption("--imagenet-weights")
    if weights is None or eval_batch.images.shape[-1] < 224:
        pytest.skip("needs ImageNet: --gradmask-data=imagenet:VAL --imagenet-weights=FILE")
    backbone = load_model(f"timm:tf_efficientnet_lite0@{weights}")
    front_end = calibrated_front_end(eval_batch.images, residual_std=0.02, seed=0, depth=49, width=12)
    composite = Composite(front_end, backbone).eval().requires_grad_(False)
    sources = {"PGD": composite, "BPDA": bypassed(composite, {"front_end": None})}
    found = {"backbone alone, clean": share(is_correct(backbone, *eval_batch))}
    found |= shares(correct_under_attacks(composite, sources, eval_batch, ThreatModel(eps=4 / 255)))
    reproduction.check(
        "1",
        holds=found["PGD"].low > found["BPDA"].high and found["PGD"].value >= found["clean"].value / 2,
        ours=f"ImageNet, efficientnet-lite0: {listed(found)}",
        images=len(eval_batch.labels),
        details={"accuracies": plain(found)},
    )
