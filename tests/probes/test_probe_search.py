"""Gradient attacks that do not optimise: something simpler is better, or a larger ball does not help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.probes.search import (
    no_fall_with_eps,
    one_step,
    random_search,
    silent_success,
    unbounded_attack,
)
from pytest_gradmask.threat import Norm, ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import SMALL, Scale, front, off_grid, traced
from tests.toys import IMAGES, Detach, KillGradient, convolutional, linear, masked, oracle, seeded

#: Models with useful gradients, at radii from nothing broken to everything broken.
UNMASKED = {
    "linear": linear(),
    "convolutional": convolutional(),
    "two classes": linear(2),
    "three classes": linear(3),
    "logits a hundredth of the size": nn.Sequential(linear(), Scale(0.01)).eval(),
}
every_unmasked = pytest.mark.parametrize("model", UNMASKED.values(), ids=UNMASKED.keys())
every_radius = pytest.mark.parametrize(
    "threat", [ThreatModel(1e-4), SMALL, ThreatModel(0.02), ThreatModel(0.1), ThreatModel(0.05, "L2")], ids=str
)


def search(model: nn.Module, threat: ThreatModel = SMALL) -> list[Finding]:
    trace, target = traced(model, threat), oracle(model)
    return [
        *random_search(target, trace, seeded()),
        *one_step(target, trace),
        *no_fall_with_eps(trace),
        *silent_success(trace),
        *unbounded_attack(target, trace, seeded()),
    ]


def only(findings: list[Finding], wanted: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.id == wanted)
    return finding


def backwards(_: Tensor, gradient: Tensor) -> Tensor:
    """A gradient that points the wrong way."""
    return -gradient


def right_at_first(images: Tensor, gradient: Tensor) -> Tensor:
    """A gradient that is right at a clean image, and leads back to it from other points."""
    return torch.where(off_grid(images), -gradient, gradient)


@every_radius
@every_unmasked
def test_unmasked_models_have_no_finding(model: nn.Module, threat: ThreatModel) -> None:
    assert search(model, threat) == []


def test_random_points_beat_a_wrong_gradient() -> None:
    finding = only(search(front(backwards)), "random-beats-gradient")
    assert finding.undermines_attacks
    assert "of 12 images" in finding.message


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_random_points_beat_a_zero_gradient(norm: Norm) -> None:
    assert only(search(masked(KillGradient), ThreatModel(0.002, norm)), "random-beats-gradient").undermines_attacks


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_step_beats_many_that_lead_back(norm: Norm) -> None:
    threat = ThreatModel({"Linf": 0.002, "L2": 0.05, "L1": 0.1}[norm], norm)
    assert only(search(front(right_at_first), threat), "one-step-beats-many").undermines_attacks


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("eps", [1e-5, 1e-4, 1e-3, 2 / 255])
def test_rounded_cross_entropy_is_no_finding(eps: float, classes: int) -> None:
    # At this scale, the gradient of the cross-entropy is partly rounded away.
    assert search(nn.Sequential(linear(classes), Scale(10.0)).eval(), ThreatModel(eps)) == []


@pytest.mark.parametrize("rule", [backwards, lambda images, gradient: 0 * gradient], ids=["wrong", "zero"])
def test_constant_accuracy_is_found(rule: object) -> None:
    finding = only(search(front(rule)), "no-fall-with-eps")  # type: ignore[arg-type]
    assert not finding.undermines_attacks
    assert "12/12/12 survive" in finding.message


def test_lost_success_is_found() -> None:
    # The first step has a length of a third of eps and breaks most images. Every second step leads back.
    finding = only(search(front(right_at_first), ThreatModel(0.06)), "silent-success")
    assert not finding.undermines_attacks


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)], ids=str)
def test_an_unbounded_attack_breaks_an_undefended_model(norm: Norm, bounds: tuple[float, float]) -> None:
    trace = traced(linear(), ThreatModel(0.001, norm, bounds), IMAGES)
    assert trace.survivors(2.0).any()
    assert unbounded_attack(oracle(linear()), trace, seeded()) == []


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("make", [Detach, KillGradient])
def test_failing_unbounded_attack_undermines_attacks(make: type[nn.Module], norm: Norm) -> None:
    finding = only(search(masked(make), ThreatModel(0.01, norm)), "unbounded-attack-fails")
    assert finding.undermines_attacks


def test_no_query_if_the_gradient_breaks_every_image() -> None:
    trace, target = traced(linear(), ThreatModel(0.2)), oracle(linear())
    random_search(target, trace, seeded())
    one_step(target, trace)
    unbounded_attack(target, trace, seeded())
    assert target.forwards == 0
