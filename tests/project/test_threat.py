"""Balls, bounds and projections."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import draw, seeded

NORMS: list[Norm] = ["Linf", "L2", "L1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, r"eps=0: must be above 0"),
        ({"eps": -0.1}, r"eps=-0.1: must be above 0"),
        ({"eps": math.nan}, r"eps=nan: must be above 0 and finite"),
        ({"eps": math.inf}, r"eps=inf: must be above 0 and finite"),
        ({"eps": "8/255"}, r"eps='8/255': must be a number"),
        ({"eps": True}, r"eps=True: must be a number"),
        ({"eps": 8}, r"eps=8: larger than the bounds .* did you mean 0.03137\?"),
        ({"norm": "linf"}, r"norm='linf': must be one of Linf, L2, L1"),
        ({"norm": 2}, r"norm=2: must be one of Linf, L2, L1"),
        ({"bounds": (1, 0)}, r"bounds=\(1, 0\): the first must be below the second"),
        ({"bounds": (0, 0)}, r"bounds=\(0, 0\): the first must be below"),
        ({"bounds": (0, math.inf)}, r"bounds=\(0, inf\)"),
        ({"bounds": (0, 1, 2)}, r"bounds=\(0, 1, 2\): must be two numbers"),
        ({"bounds": 1}, r"bounds=1: must be two numbers"),
        ({"bounds": ("low", "high")}, r"bounds=\('low', 'high'\): must be two numbers"),
        ({"bounds": "01"}, r"bounds='01': must be two numbers"),
        ({"bounds": (0, 10**400)}, r"bounds=\(0, 10+\.\.\.: must be two numbers"),
        ({"eps": 10**400}, r"eps=10+\.\.\.: must be above 0 and finite"),
        ({"norm": torch.arange(3)}, r"norm=tensor\(.*\): must be one of Linf, L2, L1"),
    ],
    ids=str,
)
def test_bad_values_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ThreatModel(**arguments)


def test_l2_ball_may_exceed_the_bounds() -> None:
    assert ThreatModel(3, "L2").eps == 3


@st.composite
def problems(draw: st.DrawFn, norm: Norm) -> tuple[ThreatModel, Tensor, Tensor]:
    """A threat model, images in its bounds, and perturbed images anywhere."""
    low = draw(st.sampled_from([0.0, -1.0, -2.1, 0.0, 100.0]))
    width = draw(st.sampled_from([1.0, 2.0, 255.0, 65535.0, 0.01]))
    share = draw(st.floats(0.001, 1))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    generator = seeded(draw(st.integers(0, 1000)))
    dimensions = math.prod(shape[1:])
    reach = {"Linf": 1, "L2": dimensions**0.5, "L1": dimensions}[norm]
    threat = ThreatModel(share * width * reach, norm, (low, low + width))
    images = torch.rand(shape, generator=generator) * width + low
    spread = draw(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 100.0])) * width
    perturbed = images + spread * torch.randn(shape, generator=generator)
    return threat, images.clamp(*threat.bounds), perturbed


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
def test_projection_is_inside_and_idempotent(norm: Norm, data: st.DataObject) -> None:
    threat, images, perturbed = data.draw(problems(norm))
    projected = threat.project(perturbed, images)
    assert threat.contains(projected, images).all()
    assert (threat.project(projected, images) - projected).abs().max() <= threat.tolerance


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (0, 255), (0, 65535), (-1000, -999)], ids=str)
def test_projections_onto_the_surface_count_as_inside(norm: Norm, bounds: tuple[float, float]) -> None:
    width = bounds[1] - bounds[0]
    threat = ThreatModel(0.03 * width * {"Linf": 1, "L2": 768**0.5, "L1": 768}[norm], norm, bounds)
    images = draw(100, 3, 16, 16) * width + bounds[0]
    far = images + width * torch.randn(images.shape, generator=seeded())
    assert threat.contains(threat.project(far, images), images).all()


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
def test_projection_leaves_images_inside_alone(norm: Norm, data: st.DataObject) -> None:
    threat, images, perturbed = data.draw(problems(norm))
    in_bounds = (perturbed == perturbed.clamp(*threat.bounds)).flatten(1).all(1)
    inside = (threat.distance(perturbed, images) <= threat.eps) & in_bounds
    moved = (threat.project(perturbed, images) - perturbed).abs().flatten(1).amax(1)
    assert (moved[inside] <= threat.tolerance).all()


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1))
def test_projection_is_the_nearest_image(norm: Norm, seed: int, share: float) -> None:
    # Bounds far away: clipped to them, an L2 projection need not be the closest point any more.
    threat = ThreatModel(share, norm, (-100, 100))
    generator = seeded(seed)
    images = torch.randn(3, 2, 4, 4, generator=generator)
    perturbed = images + torch.randn(images.shape, generator=generator)
    distance = (threat.project(perturbed, images) - perturbed).flatten(1).norm(dim=1)
    for _ in range(10):
        other = threat.random_start(images, generator)
        assert (distance <= (other - perturbed).flatten(1).norm(dim=1) + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
def test_random_start_is_inside_and_repeatable(norm: Norm, data: st.DataObject) -> None:
    threat, images, _ = data.draw(problems(norm))
    start = threat.random_start(images, seeded(3))
    assert threat.contains(start, images).all()
    assert torch.equal(start, threat.random_start(images, seeded(3)))


def test_random_starts_differ_and_fill_the_ball() -> None:
    images = torch.full((500, 1, 2, 2), 0.5)
    for norm in NORMS:
        threat = ThreatModel(0.1, norm)
        start = threat.random_start(images, seeded())
        distances = threat.distance(start, images)
        assert start.unique(dim=0).shape[0] == 500
        assert distances.max() > 0.095
        assert (start - images).mean().abs() < 0.01
    assert distances.min() < 0.005  # a uniform radius comes near the centre, too


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_step_has_unit_norm_for_any_gradient(norm: Norm, scale: float) -> None:
    gradient = scale * torch.randn(4, 3, 5, 5, generator=seeded())
    step = ThreatModel(0.1, norm).step(gradient)
    sizes = step.flatten(1).norm(dim=1, p={"Linf": math.inf, "L2": 2, "L1": 1}[norm])
    torch.testing.assert_close(sizes, torch.ones(4))
    assert ((step * gradient.sign()) >= 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_step_of_a_zero_gradient_is_zero(norm: Norm) -> None:
    gradient = torch.zeros(2, 3, 4, 4)
    gradient[1, 0, 0, 0] = 1
    step = ThreatModel(0.1, norm).step(gradient)
    assert (step[0] == 0).all()
    assert torch.equal(step[1], gradient[1])


@pytest.mark.parametrize(
    ("norm", "distance"),
    [("Linf", [0.1, 0.2, 0.0]), ("L2", [0.1 * 12**0.5, 0.2, 0.0])],
)
def test_distance(norm: Norm, distance: list[float]) -> None:
    images = draw(3, 3, 2, 2)
    delta = torch.zeros_like(images)
    delta[0] = 0.1
    delta[1, 0, 0, 0] = -0.2
    torch.testing.assert_close(ThreatModel(0.1, norm).distance(images + delta, images), torch.tensor(distance))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("value", "inside"),
    [
        pytest.param(0.5, True, id="the image"),
        pytest.param(0.59, True, id="inside"),
        pytest.param(0.6, True, id="on the surface"),
        pytest.param(0.601, False, id="outside"),
        pytest.param(math.nan, False, id="nan"),
        pytest.param(math.inf, False, id="inf"),
        pytest.param(-math.inf, False, id="-inf"),
    ],
)
def test_contains_checks_each_image(norm: Norm, value: float, inside: bool) -> None:
    images = torch.full((3, 1, 2, 2), 0.5)
    perturbed = images.clone()
    perturbed[1, 0, 1, 1] = value
    assert ThreatModel(0.1, norm).contains(perturbed, images).tolist() == [True, inside, True]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("edge", "beyond"), [(0.0, -0.01), (1.0, 1.01)])
def test_contains_checks_the_bounds(norm: Norm, edge: float, beyond: float) -> None:
    images = torch.full((2, 1, 2, 2), edge)
    perturbed = images.clone()
    perturbed[1, 0, 0, 0] = beyond
    assert ThreatModel(0.1, norm).contains(perturbed, images).tolist() == [True, False]


def test_the_tolerance_is_for_rounding_only() -> None:
    images = torch.zeros(1, 1, 2, 2)
    threat = ThreatModel(0.1)
    assert threat.tolerance == pytest.approx(1e-5)
    assert threat.contains(images + 0.1 + 5e-6, images).all()
    assert not threat.contains(images + 0.1 + 2e-5, images).any()


def test_eps_may_equal_the_width_of_the_bounds() -> None:
    low, width = -2.1, 0.01
    assert (low + width) - low < width
    assert ThreatModel(width, bounds=(low, low + width)).eps == width


def test_bounds_become_numbers() -> None:
    threat = ThreatModel(0.1, bounds=[0, torch.tensor(1)])  # type: ignore[arg-type]
    assert threat == ThreatModel(0.1)
    assert hash(threat) == hash(ThreatModel(0.1))


def test_l2_starts_have_uniform_radii() -> None:
    threat, images = ThreatModel(0.5, "L2", (-100.0, 100.0)), torch.zeros(2000, 1, 4, 4)
    radii = threat.distance(threat.random_start(images, seeded()), images)
    shares = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(radii.quantile(shares), 0.5 * shares, atol=0.03)


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1.2), spread=st.floats(0.1, 3))
def test_l1_projection_is_exact_within_ball_and_bounds(seed: int, share: float, spread: float) -> None:
    """Against a numerical optimizer, on points outside of the ball, the bounds or both."""
    generator = seeded(seed)
    images = torch.rand(1, 1, 2, 3, generator=generator).double()
    perturbed = images + spread * torch.randn(images.shape, generator=generator).double()
    threat = ThreatModel(share, "L1")
    clean, point = images.flatten().numpy(), perturbed.flatten().numpy()
    # Sizes above and below the image are variables of their own, so that the norm is linear.
    caps = np.concatenate([1 - clean, clean])

    def error(sizes: Any) -> float:
        return float(((clean + sizes[:6] - sizes[6:] - point) ** 2).sum())

    found = optimize.minimize(
        error, caps * min(1.0, share / caps.sum()), bounds=[(0, cap) for cap in caps], method="SLSQP",
        constraints={"type": "ineq", "fun": lambda sizes: share - sizes.sum()}, options={"maxiter": 500, "ftol": 1e-14},
    )  # fmt: skip
    # The optimizer may end slightly outside of the ball, where points are nearer.
    inside = np.clip(found.x, 0, caps)
    inside *= min(1.0, share / inside.sum())
    ours = threat.project(perturbed, images)
    assert threat.contains(ours, images).all()
    assert float((ours - perturbed).square().sum()) <= error(inside) + 1e-6


def test_l1_steps_change_few_pixels() -> None:
    step = ThreatModel(12, "L1").step(torch.randn(2, 3, 32, 32, generator=seeded()))
    assert (step != 0).flatten(1).sum(1).tolist() == [31, 31]


def test_l1_steps_leave_pixels_at_their_bounds_alone() -> None:
    gradient = torch.tensor([3.0, 2.0, -1.0, 0.5] + [0.1] * 16).view(1, 1, 4, 5)
    point = torch.full_like(gradient, 0.5)
    point[0, 0, 0, :3] = torch.tensor([1.0, 0.0, 0.0])
    step = ThreatModel(2, "L1").step(gradient, at=point)
    assert step.flatten().nonzero().flatten().tolist() == [1]
    assert ThreatModel(2, "L1").step(gradient).flatten().nonzero().flatten().tolist() == [0]
