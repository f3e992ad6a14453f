"""Symptoms that explain a verdict, and which of them undermine attacks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_gradmask.probes import gradient_health, unbounded_attack
from pytest_gradmask.results import Finding
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import IMAGES, Detach, KillGradient, Quantize, linear, masked, oracle, predictions, seeded


def health(model: nn.Module) -> list[Finding]:
    return gradient_health(oracle(model), IMAGES, predictions(model, IMAGES))


def unbounded(model: nn.Module, threat: ThreatModel) -> list[Finding]:
    return unbounded_attack(oracle(model), IMAGES, predictions(model, IMAGES), threat, seeded(), eot=1)


class Scale(nn.Module):
    """Multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images


def test_a_healthy_gradient_is_no_finding() -> None:
    assert health(linear()) == []


@pytest.mark.parametrize("front", [Detach, KillGradient, Quantize])
def test_a_gradient_of_zero_undermines_attacks(front: type[nn.Module]) -> None:
    findings = health(masked(front))
    assert [(finding.id, finding.undermines_attacks) for finding in findings] == [
        ("zero-gradient", False),
        ("zero-gradient", True),
    ]
    assert "exactly zero at 24 of 24 images" in findings[1].message


def test_a_saturated_cross_entropy_alone_does_not() -> None:
    findings = health(nn.Sequential(linear(), Scale(1e6)).eval())
    assert [finding.id for finding in findings] == ["zero-gradient"]
    assert "gradient of the cross-entropy" in findings[0].message
    assert not findings[0].undermines_attacks


def test_nan_gradients_undermine_attacks() -> None:
    class Root(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shift = (images - images.detach()).abs().sqrt().flatten(1).sum(1, keepdim=True)
            bright = (images[:, :1, 0, 0] > 0.5).float()
            return linear()(images) + bright * shift * torch.tensor([1.0, 0.0, 0.0, 0.0])  # type: ignore[no-any-return]

    findings = health(Root().eval())
    assert "nan-gradient" in [finding.id for finding in findings if finding.undermines_attacks]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)], ids=str)
def test_an_unbounded_attack_breaks_an_undefended_model(norm: Norm, bounds: tuple[float, float]) -> None:
    assert unbounded(linear(), ThreatModel(0.01, norm, bounds)) == []


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("front", [Detach, KillGradient])
def test_one_that_fails_undermines_attacks(front: type[nn.Module], norm: Norm) -> None:
    (finding,) = unbounded(masked(front), ThreatModel(0.01, norm))
    assert finding.id == "unbounded-attack-fails"
    assert finding.undermines_attacks
