"""Gradients that are zero, vanish, explode, are not finite, or are cut off from the images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_gradmask.probes.gradients import exploding_gradient, nan_gradient, vanishing_gradient, zero_gradient
from pytest_gradmask.threat import Norm, ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import SMALL, Rule, Scale, active, front, off_grid
from tests.toys import Detach, KillGradient, Quantize, convolutional, linear, masked, oracle

HEALTHY = {
    "linear": linear(),
    "convolutional": convolutional(),
    "two classes": linear(2),
    "three classes": linear(3),
    "logits a hundredth of the size": nn.Sequential(linear(), Scale(0.01)).eval(),
    "logits a thousand times the size": nn.Sequential(linear(), Scale(1000)).eval(),
}
every_norm = pytest.mark.parametrize("norm", ["Linf", "L2"])


def look(model: nn.Module, threat: ThreatModel = SMALL) -> list[Finding]:
    path = active(model, threat)
    return [
        *zero_gradient(oracle(model), path),
        *nan_gradient(path),
        *vanishing_gradient(path),
        *exploding_gradient(path),
    ]


@every_norm
@pytest.mark.parametrize("eps", [1e-6, 0.002, 0.1])
@pytest.mark.parametrize("model", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_gradient_is_no_finding(model: nn.Module, eps: float, norm: Norm) -> None:
    assert look(model, ThreatModel(eps, norm)) == []


@pytest.mark.parametrize("make", [KillGradient, Quantize])
def test_a_gradient_of_zero_undermines_attacks(make: type[nn.Module]) -> None:
    (finding,) = look(masked(make))
    assert (finding.id, finding.undermines_attacks) == ("zero-gradient", True)
    assert "exactly zero at 12 of 12 images" in finding.message


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(Detach(), linear()), id="input detached"),
        pytest.param(nn.Sequential(linear(), Detach()), id="output detached"),
    ],
)
def test_an_interrupted_graph_is_told_from_a_gradient_of_zero(model: nn.Module) -> None:
    findings = look(model.eval())
    assert [finding.id for finding in findings] == ["zero-gradient", "interrupted-graph"]
    assert all(finding.undermines_attacks for finding in findings)


def test_a_dead_zone_is_counted_by_image() -> None:
    def rule(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (images.flatten(1).mean(1) > 0.5).view(-1, 1, 1, 1)

    (finding,) = look(front(rule))
    assert finding.id == "zero-gradient"
    assert "at 12 of 12 images" not in finding.message


def test_a_gradient_that_is_zero_at_the_clean_image_only_is_no_finding() -> None:
    assert look(front(lambda images, gradient: gradient * off_grid(images))) == []


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(lambda images, gradient: gradient * torch.nan, id="NaN"),
        pytest.param(lambda images, gradient: gradient * torch.inf, id="infinite"),
        pytest.param(
            lambda images, gradient: torch.where(off_grid(images), torch.nan, gradient), id="only after the first step"
        ),
        pytest.param(
            lambda images, gradient: gradient.index_fill(3, torch.tensor([0]), torch.nan), id="in some pixels only"
        ),
    ],
)
def test_gradients_that_are_not_finite_undermine_attacks(rule: Rule) -> None:
    (finding,) = look(front(rule))
    assert (finding.id, finding.undermines_attacks) == ("nan-gradient", True)
    assert "12 of 12 images" in finding.message


@every_norm
def test_a_vanishing_gradient_is_found_and_undermines_nothing(norm: Norm) -> None:
    (finding,) = look(front(lambda images, gradient: 1e-6 * gradient), ThreatModel(0.002, norm))
    assert (finding.id, finding.undermines_attacks) == ("vanishing-gradient", False)


@every_norm
def test_an_exploding_gradient_is_found_and_undermines_nothing(norm: Norm) -> None:
    (finding,) = look(front(lambda images, gradient: 1e4 * gradient), ThreatModel(0.002, norm))
    assert (finding.id, finding.undermines_attacks) == ("exploding-gradient", False)
