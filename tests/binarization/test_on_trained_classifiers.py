"""The binarization test on a trained classifier: what masks it fails, what goes around the mask passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import Tensor, nn

from audits.defenses.shattered import Detached, GradientKiller, Quantization
from audits.honest.wrong_gradient import size_for_cosine, wrong_gradient
from pytest_gradmask import assert_attack_passes_binarization_test, load_model
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.loading.models.front_ends import calibrated_front_end
from pytest_gradmask.threat import Norm, ThreatModel
from tests.binarization.binarization_toys import half_fgsm
from tests.toys import (
    seeded,
)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return load_model("resnet-standard")


def on_resnet(model: nn.Module, through: nn.Module | None = None) -> BinarizationTest:
    data = load_dataset("embedded", samples=8)
    attack = partial(apgd, steps=20)
    return binarization_test(
        attack, model, data.images, data.labels, threat=ThreatModel(), generator=seeded(), through=through
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_apgd_passes_on_trained_classifier(resnet: nn.Module, norm: Norm) -> None:
    threat = ThreatModel(8 / 255 if norm == "Linf" else 0.5, norm)
    data = load_dataset("embedded", samples=8)
    assert_attack_passes_binarization_test(
        partial(apgd, steps=20), resnet, data.images, data.labels, threat=threat, generator=seeded()
    )


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["gradient-killer", "detached", "deep"])
def test_mask_before_trained_classifier(resnet: nn.Module, mask: str) -> None:
    if mask == "deep":
        images = load_dataset("embedded").images
        front: nn.Module = calibrated_front_end(images, residual_std=0.01, seed=0, depth=65, width=16)
    else:
        front = {"gradient-killer": GradientKiller, "detached": Detached}[mask]()
    model = nn.Sequential(front, resnet).eval()
    assert on_resnet(model).fails
    assert on_resnet(model, through=bypassed(model, {"0": None})).ok


@pytest.mark.slow
def test_bpda_does_not_reach_what_rounding_adds(resnet: nn.Module) -> None:
    """The search without gradients makes use of the steps of a quantization; BPDA with the identity cannot see them."""
    model = nn.Sequential(Quantization(), resnet).eval()
    blind, around = on_resnet(model), on_resnet(model, through=bypassed(model, {"0": None}))
    assert blind.fails
    assert blind.passed == 0 < around.passed
    assert not around.ok


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 50])
def test_wrong_gradient_in_trained_classifier(resnet: nn.Module, steps: int) -> None:
    data, threat = load_dataset("embedded", samples=8), ThreatModel()
    layer = resnet.get_submodule("1.layer1")

    def tested(attack: Callable[..., Tensor]) -> BinarizationTest:
        return binarization_test(attack, resnet, data.images, data.labels, threat=threat, generator=seeded())

    size = size_for_cosine(resnet, layer, data.images, data.labels, 0.5)
    with wrong_gradient(layer, size):
        assert tested(partial(apgd, steps=steps)).fails
    assert tested(partial(apgd, steps=steps)).ok
    assert tested(half_fgsm).passed == 0
