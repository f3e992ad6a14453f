"""Gradients that do not predict the change of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.probes.noise import gradient_noise
from pytest_gradmask.threat import Norm, ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import SMALL, Ripple, Scale, front, traced
from tests.toys import KillGradient, convolutional, linear, masked, oracle, seeded

SMOOTH = {
    "linear": linear(),
    "convolutional": convolutional(),
    "two classes": linear(2),
    "three classes": linear(3),
    "logits a hundredth of the size": nn.Sequential(linear(), Scale(0.01)).eval(),
    "a slow ripple": nn.Sequential(Ripple(0.5, 20), linear()).eval(),
}


def noise(model: nn.Module, threat: ThreatModel = SMALL, seed: int = 0) -> list[Finding]:
    return gradient_noise(oracle(model), traced(model, threat), seeded(seed))


@pytest.mark.parametrize("threat", [SMALL, ThreatModel(0.03, "L2"), ThreatModel(1e-6)], ids=str)
@pytest.mark.parametrize("model", SMOOTH.values(), ids=SMOOTH.keys())
def test_smooth_loss_has_no_noise(model: nn.Module, threat: ThreatModel) -> None:
    assert noise(model, threat) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fast_ripple_undermines_attacks(norm: Norm, seed: int) -> None:
    model = nn.Sequential(Ripple(gain=20, frequency=1e5), linear()).eval()
    (finding,) = noise(model, ThreatModel({"Linf": 0.004, "L2": 0.05, "L1": 0.6}[norm], norm), seed)
    assert (finding.id, finding.undermines_attacks) == ("gradient-noise", True)
    assert "at 0.0625 eps" in finding.message


def test_gradient_right_for_small_steps() -> None:
    # The gradient of the ripple keeps its sign within a sixteenth of eps, but not within a quarter of it.
    threat = ThreatModel(0.004)
    model = nn.Sequential(Ripple(gain=20, frequency=0.8 / (threat.eps / 16)), linear()).eval()
    (finding,) = noise(model, threat)
    assert (finding.id, finding.undermines_attacks) == ("gradient-noise", False)


def test_gradient_with_the_wrong_sign_is_noise() -> None:
    (finding,) = noise(front(lambda images, gradient: -gradient))
    assert finding.undermines_attacks
    assert "-1.00 at 0.25 eps" in finding.message


@pytest.mark.parametrize("seed", range(3))
def test_half_right_gradient_undermines_attacks(seed: int) -> None:
    def rule(_: Tensor, gradient: Tensor) -> Tensor:
        vector = torch.randn(gradient.shape[1:], generator=seeded(3))
        wrong: Tensor = 1.5 * gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * vector / vector.norm()
        return gradient + wrong  # cosine 0.55 to the true gradient

    model = front(rule)
    (finding,) = gradient_noise(oracle(model), traced(model, SMALL), seeded(seed))
    assert finding.undermines_attacks


def test_rounding_that_only_logits_show_is_no_noise() -> None:
    class Coarse(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits.bfloat16().float()

    assert noise(nn.Sequential(linear(), Coarse()).eval(), ThreatModel(1e-4)) == []


def test_exploding_gradient_noise_is_found() -> None:
    def rule(images: Tensor, gradient: Tensor) -> Tensor:
        return 1e30 * gradient * (torch.sin(1e5 * images).sign())

    assert [finding.id for finding in noise(front(rule))] == ["gradient-noise"]


def test_no_finding_without_a_gradient() -> None:
    assert noise(masked(KillGradient)) == []
    assert noise(front(lambda images, gradient: gradient * torch.nan)) == []


def test_no_query_if_the_gradient_breaks_every_image() -> None:
    model = linear()
    target = oracle(model)
    assert gradient_noise(target, traced(model, ThreatModel(0.2)), seeded()) == []
    assert target.forwards == 0


def test_the_cost_is_as_documented() -> None:
    model = linear()
    target = oracle(model)
    gradient_noise(target, traced(model, ThreatModel(1e-4)), seeded())
    assert (target.forwards, target.backwards) == (24 * 12, 0)
