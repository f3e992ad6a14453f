"""Gradients that are not the derivative of the logits, and where they stop to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import load_model
from pytest_gradmask.probes import derivative
from pytest_gradmask.probes.derivative import wrong_gradient
from tests.probes.gradient_toys import (
    DATA,
    THREAT,
    WRONG,
    AddVector,
    Apply,
    CannotBeCopied,
    StraightThrough,
    check,
    in_the_middle,
)
from tests.probes.probe_toys import ON_GRID
from tests.toys import (
    IMAGES,
    Detach,
    KillGradient,
    Noisy,
    Quantize,
    RaisingBackward,
    audited,
    convolutional,
    global_state,
    linear,
    masked,
    oracle,
    seeded,
)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "name"), WRONG.values(), ids=WRONG.keys())
def test_wrong_gradients_are_found_and_named(make: Callable[[], nn.Module], name: str, seed: int) -> None:
    (finding,) = check(in_the_middle(make()), seed=seed)
    assert finding.id == "wrong-gradient"
    assert finding.undermines_attacks
    assert f"they part at 2, {name} (tests/probes/gradient_toys.py:" in finding.message


@pytest.mark.parametrize("make", [make for make, _ in WRONG.values()], ids=WRONG.keys())
def test_they_are_found_without_a_copy(make: Callable[[], nn.Module]) -> None:
    (finding,) = check(in_the_middle(nn.Sequential(make(), CannotBeCopied())))
    assert finding.undermines_attacks
    assert "differences in float32" in finding.message
    assert "they part at 2.0" in finding.message


@pytest.mark.longer
def test_a_vector_added_in_a_resnet_is_named() -> None:
    model = load_model("resnet-standard").requires_grad_(False)
    network = model.get_submodule("1")
    network.layer1 = nn.Sequential(network.get_submodule("layer1"), Apply(AddVector.apply)).eval()
    (finding,) = check(model, DATA.images)
    assert finding.undermines_attacks
    assert "they part at 1.layer1.1, autograd.Function AddVector" in finding.message


class WrongInFloat32(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        wrong: Tensor = AddVector.apply(inputs)
        return wrong if inputs.dtype == torch.float32 else inputs


def test_a_gradient_that_is_wrong_in_float32_only_is_found() -> None:
    (finding,) = check(in_the_middle(WrongInFloat32()))
    assert finding.undermines_attacks
    assert finding.message.startswith("in float32 the gradient")
    assert "rounding does not explain it" in finding.message


class Rough(nn.Module):
    """A ripple so short that a float32 does not know its phase."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 1e-3 * torch.sin(1e8 * images)


def test_rounding_is_not_called_a_wrong_backward_pass() -> None:
    [finding] = check(nn.Sequential(Rough(), linear()).eval())
    assert finding.id == "wrong-gradient"
    assert finding.undermines_attacks
    assert "rounding alone changes it about as much, and the backward pass is right in float64" in finding.message
    assert check(nn.Sequential(Rough(), linear()).eval().double()) == []


def test_a_small_disagreement_undermines_nothing() -> None:
    class Slightly(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + 0.2 * inputs.detach().flip(-1)

    (finding,) = check(in_the_middle(Slightly()))
    assert not finding.undermines_attacks


@pytest.mark.parametrize(
    "make", [lambda: Apply(StraightThrough.apply), lambda: Apply(_straight_through)], ids=["function", "detach"]
)
def test_a_straight_through_gradient_undermines_nothing(make: Callable[[], nn.Module]) -> None:
    found = check(masked(make, convolutional()))
    assert all(not each.undermines_attacks and "a step with a gradient of its own" in each.message for each in found)


def _straight_through(inputs: Tensor) -> Tensor:
    return inputs + (torch.round(inputs * 16) / 16 - inputs).detach()


def test_a_wrong_gradient_behind_a_straight_through_one_is_found() -> None:
    model = nn.Sequential(Apply(StraightThrough.apply), in_the_middle(Apply(AddVector.apply))).eval()
    (finding,) = check(model)
    assert finding.undermines_attacks
    assert "autograd.Function AddVector" in finding.message


class Sampled(nn.Module):
    """Keeps values with a chance that grows with them, divided by it: its gradient is right on average over draws."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            chances = inputs.sigmoid()
            factors = (torch.rand_like(chances) < chances).float() / chances
        return inputs * factors


def test_a_gradient_that_is_right_on_average_undermines_nothing() -> None:
    target = oracle(in_the_middle(Sampled()))
    with target.frozen():
        found = wrong_gradient(target, ON_GRID, THREAT, seeded())
    assert all(not each.undermines_attacks and "Sampled.forward" in each.message for each in found)


def test_a_wrong_gradient_under_randomness_is_found() -> None:
    target = oracle(Noisy(in_the_middle(Apply(AddVector.apply)), 0.5).eval())
    with target.frozen():
        (finding,) = wrong_gradient(target, ON_GRID, THREAT, seeded())
    assert finding.undermines_attacks
    assert "autograd.Function AddVector" in finding.message


@pytest.mark.parametrize("front", [KillGradient, Detach, Quantize])
def test_a_gradient_of_zero_is_for_another_probe(front: Callable[[], nn.Module]) -> None:
    assert check(masked(front)) == []


def test_a_backward_pass_that_raises_is_for_another_probe() -> None:
    assert check(masked(lambda: Apply(RaisingBackward.apply))) == []


@pytest.mark.parametrize("model", [convolutional(), in_the_middle(Apply(AddVector.apply))], ids=["honest", "wrong"])
def test_no_trace_is_left(model: nn.Module) -> None:
    before, state, forward = global_state(), copy.deepcopy(model.state_dict()), AddVector.forward
    check(model)
    assert global_state() == before
    assert torch.get_default_dtype() is torch.float32
    assert AddVector.forward is forward
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_cost_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = derivative._logits

    def counted(subject: Any, target: Any, inputs: Any) -> list[Tensor]:
        asked.append(len(inputs[0]))
        return plain(subject, target, inputs)

    monkeypatch.setattr(derivative, "_logits", counted)
    target = oracle(convolutional())
    wrong_gradient(target, ON_GRID, THREAT, seeded())
    assert (target.forwards, target.backwards) == (4, 4)
    assert asked == [4] * 11


def test_an_audit_asks_once() -> None:
    found = audited(in_the_middle(Apply(AddVector.apply)), IMAGES).findings
    assert [each.id for each in found].count("wrong-gradient") == 1
    assert "wrong-gradient" not in {each.id for each in audited(convolutional(), IMAGES).findings}
