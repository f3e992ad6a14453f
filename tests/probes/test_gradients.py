"""Gradients that are zero, vanish, explode, are not finite, or are not connected to the images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.probes.gradients import exploding_gradient, nan_gradient, vanishing_gradient, zero_gradient
from pytest_gradmask.threat import Norm, ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import SMALL, Rule, Scale, front, off_grid, traced
from tests.toys import Detach, KillGradient, Quantize, convolutional, linear, masked, oracle

UNMASKED = {
    "linear": linear(),
    "convolutional": convolutional(),
    "two classes": linear(2),
    "three classes": linear(3),
    "logits a hundredth of the size": nn.Sequential(linear(), Scale(0.01)).eval(),
    "logits a thousand times the size": nn.Sequential(linear(), Scale(1000)).eval(),
}
every_norm = pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])


def findings_of(model: nn.Module, threat: ThreatModel = SMALL) -> list[Finding]:
    trace = traced(model, threat)
    return [
        *zero_gradient(oracle(model), trace),
        *nan_gradient(trace),
        *vanishing_gradient(trace),
        *exploding_gradient(trace),
    ]


@every_norm
@pytest.mark.parametrize("eps", [1e-6, 0.002, 0.1])
@pytest.mark.parametrize("model", UNMASKED.values(), ids=UNMASKED.keys())
def test_useful_gradient_has_no_finding(model: nn.Module, eps: float, norm: Norm) -> None:
    assert findings_of(model, ThreatModel(eps, norm)) == []


@pytest.mark.parametrize("make", [KillGradient, Quantize])
def test_zero_gradient_undermines_attacks(make: type[nn.Module]) -> None:
    (finding,) = findings_of(masked(make))
    assert (finding.id, finding.undermines_attacks) == ("zero-gradient", True)
    assert "exactly zero at 12 of 12 images" in finding.message


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(Detach(), linear()), id="input detached"),
        pytest.param(nn.Sequential(linear(), Detach()), id="output detached"),
    ],
)
def test_interrupted_graph_is_a_further_finding(model: nn.Module) -> None:
    findings = findings_of(model.eval())
    assert [finding.id for finding in findings] == ["zero-gradient", "interrupted-graph"]
    assert all(finding.undermines_attacks for finding in findings)


def test_images_with_zero_gradient_are_counted() -> None:
    def rule(images: Tensor, gradient: Tensor) -> Tensor:
        return gradient * (images.flatten(1).mean(1) > 0.5).view(-1, 1, 1, 1)

    (finding,) = findings_of(front(rule))
    assert finding.id == "zero-gradient"
    assert "at 12 of 12 images" not in finding.message


def test_zero_gradient_only_at_the_clean_image() -> None:
    assert findings_of(front(lambda images, gradient: gradient * off_grid(images))) == []


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
def test_infinite_gradients_undermine_attacks(rule: Rule) -> None:
    (finding,) = findings_of(front(rule))
    assert (finding.id, finding.undermines_attacks) == ("nan-gradient", True)
    assert "12 of 12 images" in finding.message


@every_norm
def test_vanishing_gradient_does_not_undermine_attacks(norm: Norm) -> None:
    (finding,) = findings_of(front(lambda images, gradient: 1e-6 * gradient), ThreatModel(0.002, norm))
    assert (finding.id, finding.undermines_attacks) == ("vanishing-gradient", False)


@every_norm
def test_exploding_gradient_does_not_undermine_attacks(norm: Norm) -> None:
    (finding,) = findings_of(front(lambda images, gradient: 1e4 * gradient), ThreatModel(0.002, norm))
    assert (finding.id, finding.undermines_attacks) == ("exploding-gradient", False)
