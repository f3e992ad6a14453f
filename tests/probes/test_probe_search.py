"""Gradient attacks that do not optimise: something simpler finds more, or more room finds nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_gradmask.probes.search import (
    no_fall_with_eps,
    one_step,
    random_search,
    silent_success,
    unbounded_attack,
)
from pytest_gradmask.threat import Norm, ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import SMALL, Scale, active, front, off_grid
from tests.toys import IMAGES, Detach, KillGradient, convolutional, linear, masked, oracle, seeded

#: Honest models, at radii from nothing broken to everything broken.
HONEST = {
    "linear": linear(),
    "convolutional": convolutional(),
    "two classes": linear(2),
    "three classes": linear(3),
    "logits a hundredth of the size": nn.Sequential(linear(), Scale(0.01)).eval(),
}
every_honest = pytest.mark.parametrize("model", HONEST.values(), ids=HONEST.keys())
every_radius = pytest.mark.parametrize(
    "threat", [ThreatModel(1e-4), SMALL, ThreatModel(0.02), ThreatModel(0.1), ThreatModel(0.05, "L2")], ids=str
)


def search(model: nn.Module, threat: ThreatModel = SMALL) -> list[Finding]:
    path, target = active(model, threat), oracle(model)
    return [
        *random_search(target, path, seeded()),
        *one_step(target, path),
        *no_fall_with_eps(path),
        *silent_success(path),
        *unbounded_attack(target, path, seeded()),
    ]


def only(findings: list[Finding], wanted: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.id == wanted)
    return finding


def backwards(_: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient that points the wrong way."""
    return -gradient


def right_at_first(images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient that is right at an image of 8 bits, and leads back to it from elsewhere."""
    return torch.where(off_grid(images), -gradient, gradient)


@every_radius
@every_honest
def test_honest_models_have_no_finding(model: nn.Module, threat: ThreatModel) -> None:
    assert search(model, threat) == []


def test_random_points_come_further_than_a_wrong_gradient() -> None:
    finding = only(search(front(backwards)), "random-beats-gradient")
    assert finding.undermines_attacks
    assert "of 12 images" in finding.message


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_points_come_as_far_as_no_gradient(norm: Norm) -> None:
    assert only(search(masked(KillGradient), ThreatModel(0.002, norm)), "random-beats-gradient").undermines_attacks


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_step_comes_further_than_many_that_lead_back(norm: Norm) -> None:
    threat = ThreatModel(0.002 if norm == "Linf" else 0.05, norm)
    assert only(search(front(right_at_first), threat), "one-step-beats-many").undermines_attacks


@pytest.mark.parametrize("rule", [backwards, lambda images, gradient: 0 * gradient], ids=["wrong", "zero"])
def test_an_accuracy_that_does_not_fall_with_eps_is_found(rule: object) -> None:
    finding = only(search(front(rule)), "no-fall-with-eps")  # type: ignore[arg-type]
    assert not finding.undermines_attacks
    assert "12/12/12 stand" in finding.message


def test_a_success_that_is_lost_again_is_found() -> None:
    # The first step reaches a third of eps: enough to break most images, and every second step takes it back.
    finding = only(search(front(right_at_first), ThreatModel(0.06)), "silent-success")
    assert not finding.undermines_attacks


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)], ids=str)
def test_an_unbounded_attack_breaks_an_undefended_model(norm: Norm, bounds: tuple[float, float]) -> None:
    path = active(linear(), ThreatModel(0.001, norm, bounds), IMAGES)
    assert path.standing(2.0).any()
    assert unbounded_attack(oracle(linear()), path, seeded()) == []


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("make", [Detach, KillGradient])
def test_one_that_fails_undermines_attacks(make: type[nn.Module], norm: Norm) -> None:
    finding = only(search(masked(make), ThreatModel(0.01, norm)), "unbounded-attack-fails")
    assert finding.undermines_attacks


def test_nothing_is_asked_where_the_gradient_breaks_every_image() -> None:
    path, target = active(linear(), ThreatModel(0.2)), oracle(linear())
    random_search(target, path, seeded())
    one_step(target, path)
    unbounded_attack(target, path, seeded())
    assert target.forwards == 0
