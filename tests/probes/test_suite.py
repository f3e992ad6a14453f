"""All probes together: on trained models, on randomized defenses, and without side effects."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import load_model
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from pytest_gradmask.loading.models.front_ends import calibrated_front_end
from pytest_gradmask.probes.suite import probe_defense
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import ON_GRID, SMALL, Ripple, Scale
from tests.toys import KillGradient, Noisy, global_state, linear, masked, oracle, predictions, seeded

LABELS = predictions(linear(), ON_GRID)
DATA = load_dataset("embedded")


@functools.cache
def trained(name: str) -> nn.Module:
    return load_model(name).requires_grad_(False)


def probe_trained(model: nn.Module, eps: float, images: int = 12) -> list[Finding]:
    """Findings on images of CIFAR-10 that the model classifies correctly; eps in 255ths."""
    is_correct = predictions(model, DATA.images) == DATA.labels
    batch = DATA.images[is_correct][:images], DATA.labels[is_correct][:images]
    return probe_defense(oracle(model), *batch, ThreatModel(eps / 255), seeded())


def probe(model: nn.Module, threat: ThreatModel = SMALL, randomized: bool = False) -> list[Finding]:
    return probe_defense(oracle(model), ON_GRID, LABELS, threat, seeded(), randomized=randomized)


def undermining(findings: list[Finding]) -> set[str]:
    return {finding.id for finding in findings if finding.undermines_attacks}


@pytest.mark.parametrize("name", ["resnet-standard", "resnet-adversarial", "vgg-standard"])
@pytest.mark.parametrize(("eps", "images"), [(8, 12), (0.5, 6)])
def test_trained_models_have_no_finding(name: str, eps: float, images: int) -> None:
    assert probe_trained(trained(name), eps, images) == []


def test_small_logits_have_no_finding() -> None:
    assert probe_trained(nn.Sequential(trained("vgg-standard"), Scale(0.01)).eval(), 0.5, images=6) == []


@pytest.mark.longer
@pytest.mark.parametrize(
    "front",
    [
        pytest.param(
            lambda: calibrated_front_end(DATA.images, residual_std=0.01, seed=0, depth=65, width=16), id="deep"
        ),
        pytest.param(lambda: Ripple(gain=20, frequency=2000), id="ripple"),
    ],
)
def test_shattered_gradients_undermine_attacks(front: object) -> None:
    model = nn.Sequential(front(), trained("vgg-standard")).eval()  # type: ignore[operator]
    assert "gradient-noise" in undermining(probe_trained(model, 8, images=8))


class PrivateNoise(nn.Module):
    """Noise on the logits from a random generator of its own, which cannot be frozen."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.backbone, self.scale, self.generator = linear(), scale, seeded()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.backbone(images)
        return logits + self.scale * torch.randn(logits.shape, generator=self.generator)  # type: ignore[no-any-return]


def dropout() -> nn.Module:
    model = nn.Sequential(nn.Dropout(0.1), linear()).eval()
    model[0].train()
    return model


@pytest.mark.parametrize("threat", [ThreatModel(1e-4), SMALL, ThreatModel(0.1)], ids=str)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Noisy(linear(), 0.5).eval(), id="noise"),
        pytest.param(dropout(), id="dropout"),
        pytest.param(PrivateNoise(0.5).eval(), id="private noise"),
        pytest.param(RandomizedEnsemble([linear(), linear(seed=1)]).eval(), id="ensemble"),
    ],
)
def test_randomness_does_not_undermine_attacks(model: nn.Module, threat: ThreatModel) -> None:
    assert undermining(probe(model, threat, randomized=True)) == set()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Noisy(masked(KillGradient), 0.5).eval(), id="noise"),
        pytest.param(RandomizedEnsemble([masked(KillGradient), masked(KillGradient)]).eval(), id="ensemble"),
        pytest.param(nn.Sequential(KillGradient(), PrivateNoise(0.5)).eval(), id="private noise"),
    ],
)
def test_masked_randomized_defense_is_found(model: nn.Module) -> None:
    assert undermining(probe(model, randomized=True)) >= {"zero-gradient", "unbounded-attack-fails"}


def test_randomized_ripple_is_gradient_noise() -> None:
    model = Noisy(nn.Sequential(Ripple(gain=20, frequency=1e5), linear()), 0.5).eval()
    assert "gradient-noise" in undermining(probe(model, ThreatModel(0.004), randomized=True))


def test_seed_decides_and_nothing_is_changed() -> None:
    model = masked(KillGradient)
    before = global_state()
    assert probe(model) == probe(model)
    assert global_state() == before
    assert torch.is_grad_enabled()
    assert not any(module.training for module in model.modules())


def test_cost_of_an_undefended_model() -> None:
    target = oracle(linear())
    probe_defense(target, ON_GRID, LABELS, ThreatModel(0.2), seeded())
    assert target.forwards + target.backwards <= 7 * 12
