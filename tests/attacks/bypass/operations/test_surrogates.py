"""Each natural gradient points to where the operation itself goes when its input changes a lot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_gradmask.attacks.bypass.operations.carriers import Carriers
from pytest_gradmask.attacks.bypass.operations.choices import Carried, put_in_order
from pytest_gradmask.attacks.bypass.operations.surrogates import SURROGATES

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
    "frac": (lambda x: x - torch.frac(x / 0.3) * 0.3, (), {}, 1),
    "signbit": (torch.signbit, (), {}, -1),
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


@pytest.mark.parametrize("name", ["eq", "isclose"])
def test_equality_is_a_bell(name: str) -> None:
    point = torch.tensor([-1.0, 0.0, 1.0]).requires_grad_(True)
    stand_in = SURROGATES[name].build((point, 0.0), {})
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


SCORES = torch.tensor([[0.1, 0.5, 2.0], [3.0, -1.0, 1.0]])


def choice(name: str, scores: Tensor, *arguments: Any, **options: Any) -> Carried:
    """The stand-in of indices."""
    found: Any = SURROGATES[name].build((scores, *arguments), options)
    values, found = found if isinstance(found, tuple) else (None, found)
    assert isinstance(found, Carried)
    if values is not None:
        chosen = scores.gather(1, getattr(torch, name)(scores, *arguments, **options).indices.view(2, -1))
        assert values.flatten().equal(chosen.flatten())
    return found


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("keepdim", [False, True])
def test_index_of_the_largest_has_the_gradient_of_argmax(name: str, keepdim: bool) -> None:
    found, known = choice(name, SCORES, 1, keepdim=keepdim), choice(f"arg{name}", SCORES, 1, keepdim)
    assert found.weights is not None
    assert known.weights is not None
    assert torch.allclose(found.weights, known.weights)
    assert torch.allclose(found.values, known.values)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("sort", (), {}),
        ("sort", (1, True), {}),
        ("argsort", (), {"descending": True}),
        ("topk", (2,), {}),
        ("topk", (2, 1), {"largest": False}),
        ("kthvalue", (2,), {}),
        ("median", (1,), {}),
        ("nanmedian", (), {"dim": 1, "keepdim": True}),
    ],
)
def test_what_was_chosen_is_the_most_probable(name: str, arguments: Any, options: Any) -> None:
    found = choice(name, SCORES, *arguments, **options)
    result = getattr(torch, name)(SCORES, *arguments, **options)
    indices = result if isinstance(result, Tensor) else result.indices
    assert found.weights is not None
    assert found.values.shape == indices.shape
    assert found.weights.argmax(-1).equal(indices)
    assert torch.allclose(found.weights.sum(-1), torch.ones(indices.shape))


def test_choices_along_the_first_dimension() -> None:
    along, across = choice("argsort", SCORES, 1).weights, choice("argsort", SCORES.T, 0).weights
    assert along is not None
    assert across is not None
    assert torch.allclose(along.transpose(0, 1), across)


def test_gradient_of_ranks() -> None:
    point = torch.tensor([[0.3, 0.1, 0.2, 0.4]], requires_grad=True)
    weights = choice("argsort", point).weights
    assert weights is not None
    expected_ranks = put_in_order(weights, torch.arange(4.0).expand(1, 4), 1)
    assert expected_ranks.argsort(1).equal(point.argsort(1))
    for number in range(4):
        (gradient,) = torch.autograd.grad(expected_ranks[0, number], point, retain_graph=True)
        assert gradient[0, number] > 0
        assert sum(gradient[0].tolist()) == pytest.approx(0, abs=1e-4)  # all moved alike, and no rank changes


def test_what_is_too_large_has_no_probabilities() -> None:
    assert SURROGATES["argsort"].build((torch.rand(1, 2000),), {}) is None
    assert SURROGATES["topk"].build((torch.rand(1, 2000), 5), {}) is not None


def test_number_by_its_size_is_a_sign() -> None:
    point = torch.linspace(-1.95, 1.95, 40).requires_grad_(True)
    sign, quotient = SURROGATES["sign"].build((point,), {}), SURROGATES["div"].build((point, point.abs()), {})
    assert isinstance(sign, Tensor)
    assert isinstance(quotient, Tensor)
    assert quotient.equal(sign)


def test_gradient_of_the_hamming_distance() -> None:
    bits, code = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True), torch.zeros(1, 3)
    distance = SURROGATES["cdist"].build((bits, code), {"p": 0})
    assert isinstance(distance, Tensor)
    assert distance.item() == torch.cdist(bits, code, p=0).item() == 2
    assert torch.autograd.grad(distance.sum(), bits)[0].tolist() == [[1, 0, 1]]


def test_copied_sign_grows_with_what_gives_it() -> None:
    size, other = torch.full((40,), -2.0), torch.linspace(-1.95, 1.95, 40).requires_grad_(True)
    stand_in = SURROGATES["copysign"].build((size, other), {})
    assert isinstance(stand_in, Tensor)
    assert (torch.autograd.grad(stand_in.sum(), other)[0] > 0).all()


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("div", (torch.ones(2).requires_grad_(True), torch.ones(2)), {}),
        ("div", (torch.ones(2), torch.full((2,), 2.0).requires_grad_(True)), {}),
        ("copysign", (torch.ones(2).requires_grad_(True), torch.ones(2)), {}),
        ("cdist", (torch.ones(1, 2), torch.ones(1, 2)), {}),
        ("cdist", (torch.ones(1, 2), torch.ones(1, 2), 1.0), {}),
        ("max", (torch.ones(2),), {}),
        ("max", (torch.ones(2), torch.zeros(2)), {}),
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
