"""The path that probes share: where it goes, what it costs, what it notes."""

from __future__ import annotations

import pytest
import torch

from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.probes.trace import IMAGES as MOST
from pytest_gradmask.probes.trace import trace_pgd
from pytest_gradmask.threat import Norm, ThreatModel
from tests.probes.probe_toys import ON_GRID, SMALL, active, front
from tests.toys import (
    IMAGES,
    KillGradient,
    Recorder,
    convolutional,
    global_state,
    linear,
    masked,
    oracle,
    predictions,
    seeded,
)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)], ids=str)
def test_each_look_lies_in_its_ball_and_in_the_bounds(norm: Norm, bounds: tuple[float, float]) -> None:
    model = linear()
    recorder, threat = Recorder(model), ThreatModel(0.01, norm, bounds)
    trace = trace_pgd(oracle(recorder), ON_GRID, predictions(model, ON_GRID), threat, seeded(), whole=True)
    assert len(recorder.asked) == len(trace.radii) == 15
    for points, radius in zip(recorder.asked, trace.radii, strict=True):
        assert ThreatModel(radius * threat.eps, norm, bounds).contains(points, ON_GRID[:MOST]).all()
    assert torch.equal(recorder.asked[0], ON_GRID[:MOST])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_margins_and_slopes_are_those_of_the_model(norm: Norm) -> None:
    model, images = convolutional(), ON_GRID[:MOST]
    labels = predictions(model, images)
    trace = active(model, ThreatModel(1e-4, norm))
    for look, loss in ((0, logit_margin), (1, cross_entropy)):
        point = images.clone().requires_grad_(True)
        gradient = torch.autograd.grad(loss(model(point), labels).sum(), point)[0].flatten(1)
        expected = gradient.abs().sum(1) if norm == "Linf" else gradient.norm(dim=1)
        assert trace.gradient_norms[look] == pytest.approx(expected, rel=0.05)  # a step of eps / 3 away, for the second
    with torch.no_grad():
        assert torch.allclose(trace.logit_margins[0], logit_margin(model(images), labels))
        spreads = model(images).amax(1) - model(images).amin(1)
    assert torch.allclose(trace.spreads, spreads)


def test_an_image_that_breaks_is_followed_no_further() -> None:
    model = linear()
    target = oracle(model)
    trace = trace_pgd(target, IMAGES, predictions(model, IMAGES), ThreatModel(0.2), seeded())
    assert not trace.standing(1.0).any()
    assert target.forwards == target.backwards == 3 * MOST
    assert trace.logit_margins[-1].isnan().all()


def test_an_image_that_stands_is_followed_to_the_end() -> None:
    target = oracle(linear())
    trace = trace_pgd(target, IMAGES, predictions(linear(), IMAGES), ThreatModel(1e-6), seeded())
    assert trace.standing(2.0).all()
    assert (target.forwards, target.backwards) == (15 * MOST, 14 * MOST)
    assert not trace.logit_margins.isnan().any()


def test_room_breaks_more_images() -> None:
    trace = active(linear(), ThreatModel(0.008))
    counts = [int(trace.standing(radius).sum()) for radius in (0.5, 1.0, 2.0)]
    assert counts[0] > counts[1] > counts[2]


def test_the_path_leaves_a_point_without_a_gradient() -> None:
    trace = active(masked(KillGradient))
    assert (trace.gradient_norms[:-1] == 0).all()
    assert (trace.logit_margins[2:] != trace.logit_margins[0]).any(1).all()


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_noted() -> None:
    trace = active(front(lambda images, gradient: gradient * torch.inf))
    assert trace.gradient_norms[:-1].isinf().all()
    assert (trace.logit_margins == trace.logit_margins[0]).all()


def test_the_same_seed_gives_the_same_path_and_global_random_states_are_untouched() -> None:
    model = masked(KillGradient)
    before = global_state()
    first, second = active(model), active(model)
    assert torch.equal(first.logit_margins, second.logit_margins)
    assert global_state() == before
    other = trace_pgd(oracle(model), ON_GRID, predictions(model, ON_GRID), SMALL, seeded(1))
    assert not torch.equal(first.logit_margins, other.logit_margins)
