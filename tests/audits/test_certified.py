"""Certificates hold: against exact answers on tiny networks, and against every attack."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor, nn

from audits.certified.__main__ import PAGE, RESULT, page
from audits.certified.bounds import ball, certified, interval_bounds, layers_of, linear_margins
from audits.certified.digits import EPS, NETWORKS, digits, load, trained
from audits.certified.measurement import MASKS, attacked, audited
from pytest_gradmask import ThreatModel, apgd
from tests.toys import seeded

EPSILONS = st.floats(0.01, 0.4)


def tiny(seed: int, hidden: int = 4) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network of two inputs and three classes, an image, and the class that it gets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3)
        ).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        image = torch.rand(1, 1, 1, 2)
    return model, image, model(image).argmax(1)


def smallest_margins(model: nn.Sequential, image: Tensor, label: int, eps: float) -> np.ndarray:
    """The exact lowest margins over the ball: a linear program for each pattern of active units."""
    first, second, last = (layer for layer in model if isinstance(layer, nn.Linear))
    weights = [layer.weight.detach().double().numpy() for layer in (first, second, last)]
    biases = [layer.bias.detach().double().numpy() for layer in (first, second, last)]
    low, high = (bound.squeeze(0).double().numpy() for bound in ball(image, eps))
    others = [other for other in range(3) if other != label]
    lowest = np.full(2, np.inf)
    units = len(biases[0])
    for pattern in itertools.product([0.0, 1.0], repeat=2 * units):
        masks = np.array(pattern[:units]), np.array(pattern[units:])
        rows, constants = weights[0], biases[0]
        upper, limits = [], []
        for mask, weight, bias in zip(masks, weights[1:], biases[1:], strict=True):
            sign = np.where(mask == 1, -1.0, 1.0)  # active units are at least zero, the others at most
            upper.append(sign[:, None] * rows)
            limits.append(-sign * constants)
            rows, constants = weight @ (mask[:, None] * rows), weight @ (mask * constants) + bias
        for number, other in enumerate(others):
            goal, constant = rows[label] - rows[other], constants[label] - constants[other]
            found = optimize.linprog(
                goal, A_ub=np.concatenate(upper), b_ub=np.concatenate(limits), bounds=list(zip(low, high, strict=True))
            )
            if found.success:
                lowest[number] = min(lowest[number], found.fun + constant)
    return lowest


@pytest.mark.longer
@pytest.mark.parametrize("seed", range(6))
def test_linear_bounds_are_below_the_exact_margins(seed: int) -> None:
    model, image, label = tiny(seed)
    gaps = []
    for eps in (0.001, 0.05, 0.3):
        exact = smallest_margins(model, image, int(label), eps)
        bounds = linear_margins(model, image, label, eps)[0].numpy()
        assert (bounds <= exact + 1e-5 * (1 + abs(exact))).all()
        gaps.append(float((exact - bounds).max()))
    assert gaps[0] < 1e-4, "in a ball without a kink the bounds are exact"


@given(seed=st.integers(0, 200), eps=EPSILONS)
def test_no_point_of_the_ball_leaves_the_bounds(seed: int, eps: float) -> None:
    model, image, label = tiny(seed)
    low, high = ball(image, eps)
    points = low + (high - low) * torch.rand(200, 2, generator=seeded(seed))
    points = torch.cat([points, torch.stack([low[0], high[0]])])
    values = points
    for layer, (below, above) in zip(
        [None, *layers_of(model)], interval_bounds(layers_of(model), low, high), strict=True
    ):
        values = values if layer is None else layer(values)
        assert (values >= below - 1e-4).all()
        assert (values <= above + 1e-4).all()
    if certified(model, image, label, eps).all():
        assert (model(points.view(-1, 1, 1, 2)).argmax(1) == label).all()


@given(seed=st.integers(0, 200))
def test_a_misclassified_point_in_the_ball_has_no_certificate(seed: int) -> None:
    model, image, label = tiny(seed)
    other = torch.rand(1, 1, 1, 2, generator=seeded(seed))
    if model(other).argmax(1) != label:
        assert not certified(model, image, label, float((other - image).abs().max()) + 1e-6).any()


def test_other_layers_have_no_bounds() -> None:
    with pytest.raises(TypeError, match="Tanh"):
        layers_of(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_floor_is_close_to_what_attacks_leave(name: str) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")
    model, (images, labels) = load(name), digits(train=False)
    safe = certified(model, images, labels, EPS)
    found = apgd(model, images, labels, threat=ThreatModel(EPS), steps=50, generator=seeded())
    left = (model(found).argmax(1) == labels) & (model(images).argmax(1) == labels)
    assert not (safe & ~left).any()
    assert 0.7 < safe.float().mean() < left.float().mean() < safe.float().mean() + 0.08


def test_training_raises_the_floor() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")
    images, labels = digits(train=False)
    floors = [certified(trained(32, 0, epochs=epochs), images, labels, EPS).float().mean() for epochs in (1, 40)]
    assert floors[0] < 0.1
    assert floors[1] > 0.5


@pytest.mark.longer
def test_a_broken_certified_image_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug detector detects: with a floor that is too high, attacks cross it."""
    pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")
    honest = attacked("narrow", images=40, seeds=[0])
    assert honest["crossed"] == 0
    assert honest["attacked"] > 300
    monkeypatch.setattr(
        "audits.certified.measurement.floor", lambda _name, images, _labels: torch.ones(len(images)) > 0
    )
    assert attacked("narrow", images=40, seeds=[0])["crossed"] > 0


@pytest.mark.longer
@pytest.mark.parametrize("mask", ["", *MASKS])
def test_no_mask_lifts_the_floor(mask: str) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")
    found = audited("narrow", mask, images=100)
    bare = audited("narrow", "", images=100)
    assert found["crossed"] == 0
    assert found["floor"] <= found["all"] <= bare["all"] + 0.05
    if mask == "steep":  # it hides the gradient of the cross-entropy alone, and AutoAttack has other losses
        assert found["verdict"] != "MASKED"
        assert found["gradient"] <= bare["all"] + 0.05
    else:
        assert found["verdict"] != ("NOT_MASKED" if mask else "MASKED")


def test_the_page_is_that_of_the_stored_result() -> None:
    record = json.loads(RESULT.read_text())
    assert page(record) == PAGE.read_text()
    assert all(each["crossed"] == 0 for each in (*record["attacked"], *record["audits"]))
    assert sum(each["attacked"] for each in record["attacked"]) >= 100_000
