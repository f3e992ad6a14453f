"""Each natural gradient points to where the operation itself goes when its input changes a lot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.operations.carriers import Carriers
from pytest_gradmask.attacks.bypass.operations.surrogates import SURROGATES, Carried

#: Name in the table: a call, and whether it grows with its input.
LEVELS = torch.linspace(0, 1, 9)
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[Any, ...], dict[str, Any], int]] = {
    **{name: (getattr(torch, name), (), {}, 1) for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")},
    "fake_quantize_per_tensor_affine": (
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), (0.1, 0, -128, 127), {}, 1
    ),
    "heaviside": (lambda x: torch.heaviside(x, torch.ones(1)), (torch.ones(1),), {}, 1),
    "gt": (lambda x: x > 0.1, (0.1,), {}, 1),
    "ge": (lambda x: x >= 0.1, (0.1,), {}, 1),
    "lt": (lambda x: x < 0.1, (0.1,), {}, -1),
    "le": (lambda x: x <= 0.1, (), {"other": 0.1}, -1),
    "floor_divide": (lambda x: x // 0.3, (0.3,), {}, 1),
    "div": (lambda x: torch.div(x, 0.3, rounding_mode="trunc"), (0.3,), {"rounding_mode": "trunc"}, 1),
    "bucketize": (lambda x: torch.bucketize(x, LEVELS), (LEVELS,), {}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_gradient_has_the_direction_of_the_operation(name: str) -> None:
    call, arguments, options, sign = CALLS[name]
    point = torch.linspace(-1.95, 1.95, 40).requires_grad_(True)
    stand_in = SURROGATES[name].build((point, *arguments), options)
    assert isinstance(stand_in, Tensor)
    (gradient,) = torch.autograd.grad(stand_in.sum(), point)
    with torch.no_grad():
        change = (call(point + 1).float() - call(point - 1).float()).sum()
    assert sign * change > 0
    assert (sign * gradient >= 0).all()
    assert sign * gradient.sum() > 0


def test_identity_is_the_gradient_of_rounding() -> None:
    point = torch.linspace(-2, 2, 9).requires_grad_(True)
    stand_in = SURROGATES["round"].build((point,), {})
    assert isinstance(stand_in, Tensor)
    assert torch.autograd.grad(stand_in.sum(), point)[0].equal(torch.ones(9))


def test_equality_is_a_bell() -> None:
    point = torch.tensor([-1.0, 0.0, 1.0]).requires_grad_(True)
    stand_in = SURROGATES["eq"].build((point, 0.0), {})
    assert isinstance(stand_in, Tensor)
    below, at, above = torch.autograd.grad(stand_in.sum(), point)[0].tolist()
    assert below > 0
    assert at == 0
    assert above < 0


@pytest.mark.parametrize(("name", "largest"), [("argmax", 2), ("argmin", 0)])
def test_class_has_probabilities(name: str, largest: int) -> None:
    carried = SURROGATES[name].build((torch.tensor([[0.1, 0.5, 2.0]]), 1), {})
    assert isinstance(carried, Carried)
    assert carried.weights is not None
    assert carried.weights.sum() == pytest.approx(1)
    assert int(carried.weights.argmax()) == largest
    assert carried.values.shape == (1,)
    kept = SURROGATES[name].build((torch.tensor([[0.1, 0.5, 2.0]]),), {"dim": 1, "keepdim": True})
    assert isinstance(kept, Carried)
    assert kept.values.shape == (1, 1)
    assert kept.weights is not None
    assert kept.weights.shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("div", (torch.ones(2), 3.0), {}),
        ("bernoulli", (torch.ones(2), 1), {}),
        ("bernoulli", (torch.ones(2),), {"p": 1}),
    ],
)
def test_what_needs_no_surrogate_has_none(name: str, arguments: Any, options: Any) -> None:
    assert SURROGATES[name].build(arguments, options) is None


def test_every_surrogate_says_what_it_is() -> None:
    assert all(each.gradient and each.source for each in SURROGATES.values())


def test_carriers_have_the_values_of_their_integers() -> None:
    carriers = Carriers()
    point = torch.rand(2, 3).requires_grad_(True) * 1.0
    integers = (point * 9).long()
    carriers.attach(integers, point * 9)
    assert carriers.values(integers).equal(integers.float())
    doubled = carriers.follow(torch.Tensor.mul, "mul", (integers, 2), {})
    assert doubled.equal(integers * 2)
    assert carriers.values(doubled).equal(integers.float() * 2)
    assert carriers.values(doubled).requires_grad


def test_float_of_an_integer_has_its_gradient() -> None:
    carriers = Carriers()
    point = torch.rand(2, 3).requires_grad_(True)
    integers = (point * 9).long()
    carriers.attach(integers, point * 9)
    floats = carriers.follow(torch.Tensor.float, "float", (integers,), {})
    assert torch.autograd.grad(floats.sum(), point)[0].equal(torch.full((2, 3), 9.0))
