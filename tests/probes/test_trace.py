"""The PGD trace that probes share: its iterates, its cost and its record."""

from __future__ import annotations

import pytest
import torch

from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.probes.trace import MAX_IMAGES, trace_pgd
from pytest_gradmask.threat import Norm, ThreatModel
from tests.probes.probe_toys import ON_GRID, SMALL, front, traced
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


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)], ids=str)
def test_iterates_are_in_ball_and_bounds(norm: Norm, bounds: tuple[float, float]) -> None:
    model = linear()
    recorder, threat = Recorder(model), ThreatModel(0.01, norm, bounds)
    trace = trace_pgd(oracle(recorder), ON_GRID, predictions(model, ON_GRID), threat, seeded(), all_active=True)
    assert len(recorder.asked) == len(trace.radii) == 15
    for points, radius in zip(recorder.asked, trace.radii, strict=True):
        assert ThreatModel(radius * threat.eps, norm, bounds).contains(points, ON_GRID[:MAX_IMAGES]).all()
    assert torch.equal(recorder.asked[0], ON_GRID[:MAX_IMAGES])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_logit_margins_and_gradient_norms(norm: Norm) -> None:
    model, images = convolutional(), ON_GRID[:MAX_IMAGES]
    labels = predictions(model, images)
    trace = traced(model, ThreatModel(1e-4, norm))
    for index, loss in ((0, logit_margin), (1, cross_entropy)):
        point = images.clone().requires_grad_(True)
        gradient = torch.autograd.grad(loss(model(point), labels).sum(), point)[0].flatten(1)
        expected = gradient.norm(dim=1, p={"Linf": 1, "L2": 2, "L1": float("inf")}[norm])
        assert trace.gradient_norms[index] == pytest.approx(
            expected, rel=0.05
        )  # a step of eps / 3 away, for the second
    with torch.no_grad():
        assert torch.allclose(trace.logit_margins[0], logit_margin(model(images), labels))
        logit_ranges = model(images).amax(1) - model(images).amin(1)
    assert torch.allclose(trace.logit_ranges, logit_ranges)


def test_broken_image_is_not_active_any_more() -> None:
    model = linear()
    target = oracle(model)
    trace = trace_pgd(target, IMAGES, predictions(model, IMAGES), ThreatModel(0.2), seeded())
    assert not trace.survivors(1.0).any()
    assert target.forwards == target.backwards == 3 * MAX_IMAGES
    assert trace.logit_margins[-1].isnan().all()


def test_survivor_is_active_to_the_end() -> None:
    target = oracle(linear())
    trace = trace_pgd(target, IMAGES, predictions(linear(), IMAGES), ThreatModel(1e-6), seeded())
    assert trace.survivors(2.0).all()
    assert (target.forwards, target.backwards) == (15 * MAX_IMAGES, 14 * MAX_IMAGES)
    assert not trace.logit_margins.isnan().any()


def test_larger_balls_have_fewer_survivors() -> None:
    trace = traced(linear(), ThreatModel(0.008))
    counts = [int(trace.survivors(radius).sum()) for radius in (0.5, 1.0, 2.0)]
    assert counts[0] > counts[1] > counts[2]


def test_zero_gradient_restarts_from_a_random_point() -> None:
    trace = traced(masked(KillGradient))
    assert (trace.gradient_norms[:-1] == 0).all()
    assert (trace.logit_margins[2:] != trace.logit_margins[0]).any(1).all()


def test_infinite_gradient_is_recorded_and_moves_nothing() -> None:
    trace = traced(front(lambda images, gradient: gradient * torch.inf))
    assert trace.gradient_norms[:-1].isinf().all()
    assert (trace.logit_margins == trace.logit_margins[0]).all()


def test_seed_decides_and_global_state_is_unchanged() -> None:
    model = masked(KillGradient)
    before = global_state()
    first, second = traced(model), traced(model)
    assert torch.equal(first.logit_margins, second.logit_margins)
    assert global_state() == before
    other = trace_pgd(oracle(model), ON_GRID, predictions(model, ON_GRID), SMALL, seeded(1))
    assert not torch.equal(first.logit_margins, other.logit_margins)
