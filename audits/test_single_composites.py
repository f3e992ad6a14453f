"""Claims 1, 2 and 5: one front end before one classifier."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from audits.conftest import Reproduction, images_for
from audits.measures import (
    Comparison,
    correct_under_attacks,
    figures,
    is_correct,
    listed,
    mean_change,
    plain,
    share,
    shares,
    summary,
)
from pytest_gradmask import Composite, Defense, Verdict, bypassed
from pytest_gradmask.auditing.research import measure_gap
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

pytestmark = pytest.mark.gradmask

#: A front end is near the identity if it changes pixels, which are in [0, 1], by at most this much on average.
NEAR = 0.1
COMPOSITES = [
    f"{backbone}-{training}" for training in ("standard", "adversarial") for backbone in ("resnet", "vgg", "vit")
]


@pytest.mark.parametrize("composite", [f"{name}-composite" for name in COMPOSITES], indirect=True, ids=COMPOSITES)
def test_a_composite_masks(
    gradmask: Gradmask,
    composite: Composite,
    reproduction: Reproduction,
    request: pytest.FixtureRequest,
) -> None:
    """Claim 1: clean accuracy stays, gradient attacks remove at most half of it, and BPDA breaks the composite."""
    batch = images_for(request)
    name = request.node.callspec.id
    audit = gradmask.audit(Defense(composite, name=name), *batch)
    # An audit ends once it is certain. Accuracies have narrower bounds on all images.
    everywhere, bare = Comparison.of(composite, batch), share(is_correct(composite.backbone, *batch))
    clean, pgd = share(everywhere.clean).value, share(everywhere.pgd).value
    reproduction.check(
        "1",
        holds=audit.verdict is Verdict.MASKED
        and mean_change(composite.front_end, batch.images) <= NEAR
        and clean >= bare.value - 0.1
        and pgd >= clean / 2
        and audit.gradient_accuracy.value >= audit.clean_accuracy.value / 2,
        ours=f"{summary(audit)} (certain after {audit.total} images); on all images {everywhere}; "
        f"backbone alone, clean {bare}",
        images=len(batch.labels),
        details={
            "audits": [figures(audit)],
            "cells": [everywhere.figures(f"{name}, all images")],
            "backbone": plain({"clean": bare}),
        },
    )


@pytest.mark.gradmask(exhaustive=True)
@pytest.mark.parametrize("composite", ["resnet-standard-composite"], indirect=True)
def test_black_box_attacks_partly_overcome_a_composite(
    gradmask: Gradmask, composite: Composite, many_images: EvalBatch, reproduction: Reproduction
) -> None:
    """Claim 2: Square or zero-order PGD breaks more than gradient attacks of the same cost, and less than BPDA."""
    audit = gradmask.audit(Defense(composite, name="resnet-standard"), *many_images)
    bpda = audit.accuracy_under("bpda")
    found = {name: audit.accuracy_under(name) for name in ("square", "zero-order")}
    best = min(found, key=lambda name: found[name].value)
    black_box = [result for result in audit.attacks if result.kind != "adaptive" or result.name in found]
    gap = measure_gap(audit.clean, audit.predictions, black_box, audit.confidence)
    assert gap is not None
    reproduction.check(
        "2",
        holds=gap.p_value < 0.01 and bpda.high < found[best].low,
        ours=f"{summary(audit)}; p of both against the placebo {gap.p_value:.2g}",
        images=audit.total,
        details={"audits": [figures(audit)]},
    )


class _Mirrored(nn.Module):
    """A front end whose output is mirrored. It differs from the identity as an image differs from its mirror image."""

    def __init__(self, front_end: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end

    def forward(self, images: Tensor) -> Tensor:
        return _mirror(self.front_end(images))


def _mirror(images: Tensor) -> Tensor:
    return images.flip(-1)


@pytest.mark.parametrize("composite", ["resnet-standard-composite"], indirect=True)
def test_identity_bpda_needs_a_front_end_near_the_identity(
    composite: Composite, eval_batch: EvalBatch, reproduction: Reproduction
) -> None:
    """Claim 5: if the front end mirrors images, which costs no accuracy, BPDA needs the mirror, too."""
    mirrored = Composite(_Mirrored(composite.front_end), composite.backbone).eval()
    sources = {
        "gradient": mirrored,
        "identity BPDA": bypassed(mirrored, {"front_end": None}),
        "BPDA with a mirror": bypassed(mirrored, {"front_end": _mirror}),
    }
    near = correct_under_attacks(composite, {"identity BPDA": bypassed(composite, {"front_end": None})}, eval_batch)
    found = {"near the identity, identity BPDA": share(near["identity BPDA"])}
    found |= {
        f"mirrored, {name}": each for name, each in shares(correct_under_attacks(mirrored, sources, eval_batch)).items()
    }
    reproduction.check(
        "5",
        holds=found["mirrored, identity BPDA"].low > found["mirrored, BPDA with a mirror"].high
        and found["mirrored, identity BPDA"].low > found["near the identity, identity BPDA"].high,
        ours=listed(found),
        images=len(eval_batch.labels),
        details={"accuracies": plain(found)},
    )
