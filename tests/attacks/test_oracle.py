"""The defense that attacks query."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle, parameter_dtype
from pytest_gradmask.execution.generators import random_state, set_random_state
from pytest_gradmask.randomized.streams import RandomStream
from tests.toys import CPU, Detach, Noisy, Quantize, QuantizeInPlace, Softmax, Spy, draw, linear, oracle


def test_passes_are_counted_per_image() -> None:
    target, images = oracle(linear()), draw(5, 3, 8, 8)
    with torch.no_grad():
        target(images)
        target(images[:2])
    assert (target.forwards, target.backwards) == (7, 0)
    point = images[:3].clone().requires_grad_(True)
    logits = target(point)
    assert (target.forwards, target.backwards) == (10, 0)
    torch.autograd.grad(logits.sum(), point)
    assert (target.forwards, target.backwards) == (10, 3)


def test_oracles_count_separately() -> None:
    model, images = linear(), draw(2, 3, 8, 8)
    first, second = oracle(model), oracle(model)
    first(images)
    assert (first.forwards, second.forwards) == (2, 0)


def test_train_mode_of_the_model_is_unchanged() -> None:
    model = nn.Sequential(linear(), nn.Dropout(0.5)).eval()
    target = oracle(model)
    target.train(target.training)  # as torchattacks does after each attack
    assert not any(module.training for module in model.modules())
    in_training = linear().train()
    assert not oracle(in_training).training
    assert in_training.training, "the flags of the model belong to the user"


def test_logits_and_gradients_are_those_of_the_model() -> None:
    model, images = linear(), draw(4, 3, 8, 8)
    points = [images.clone().requires_grad_(True) for _ in range(2)]
    outputs = [oracle(model)(points[0]), model(points[1])]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad(out[:, 1].sum(), p)[0] for out, p in zip(outputs, points, strict=True)]
    assert torch.equal(*gradients)


def test_probabilities_become_logits() -> None:
    model, images = linear(), draw(4, 3, 8, 8)
    logits = oracle(Softmax(model), outputs="probabilities")(images)
    torch.testing.assert_close(logits.softmax(1), model(images).softmax(1))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(4))


def test_probability_of_zero_becomes_a_finite_logit() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    logits = oracle(Sure(), outputs="probabilities")(draw(2, 3, 8, 8))
    assert logits.isfinite().all()
    assert (logits[:, 0] > logits[:, 1] + 20).all()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(Detach(), linear()), id="input detached"),
        pytest.param(nn.Sequential(linear(), Detach()), id="output detached"),
    ],
)
def test_detached_defense_has_a_zero_gradient(model: nn.Module) -> None:
    target, point = oracle(model), draw(3, 3, 8, 8).requires_grad_(True)
    assert (torch.autograd.grad(target(point).sum(), point)[0] == 0).all()
    assert target.backwards == 3


def test_defense_under_no_grad_has_a_zero_gradient() -> None:
    class Frozen(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return linear()(images)  # type: ignore[no-any-return]

    point = draw(3, 3, 8, 8).requires_grad_(True)
    assert (torch.autograd.grad(oracle(Frozen())(point).sum(), point)[0] == 0).all()


def test_global_seed_does_not_repeat_the_noise() -> None:
    target, images = oracle(Noisy(linear())), draw(2, 3, 8, 8)
    answers = []
    for _ in range(3):
        torch.manual_seed(0)
        answers.append(target(images))
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[1], answers[2])


def test_noise_does_not_change_the_attacks_random_numbers() -> None:
    target = oracle(Noisy(linear()))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    target(draw(2, 3, 8, 8))
    assert torch.equal(torch.rand(3), expected)


def test_oracles_share_a_stream() -> None:
    model, images = Noisy(linear()), draw(2, 3, 8, 8)

    def answers(split: bool) -> list[Tensor]:
        stream = RandomStream(7, CPU)
        first = Oracle(model, stream)
        second = Oracle(model, stream) if split else first
        return [first(images), second(images)]

    for one, other in zip(answers(split=True), answers(split=False), strict=True):
        assert torch.equal(one, other)


def numbers() -> tuple[float, float, float]:
    """The next random number of every global generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_stream_exchanges_all_global_generators() -> None:
    before = random_state(CPU)
    expected = numbers()
    set_random_state(before, CPU)
    stream = RandomStream(3, CPU)
    with stream.active():
        first = numbers()
    with contextlib.suppress(ZeroDivisionError), stream.active():
        second = numbers()
        _ = 1 / 0
    with stream.active():
        third = numbers()
    assert numbers() == expected
    assert len({expected, first, second, third}) == 4
    with RandomStream(3, CPU).active():
        assert [numbers() for _ in range(3)] == [first, second, third]


def test_frozen_stream_repeats_all_generators() -> None:
    stream, other, drawn = RandomStream(3, CPU), RandomStream(3, CPU), []
    for context in (stream.frozen, stream.frozen, contextlib.nullcontext, contextlib.nullcontext):
        with context(), stream.active():
            drawn.append(numbers())
    with other.active():
        first, second = numbers(), numbers()
    assert drawn == [first, first, first, second]


def test_writing_into_logits_does_not_reach_the_model() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cache = torch.tensor([[1.0, 2.0]])

        def forward(self, images: Tensor) -> Tensor:
            return self.cache.expand(1, 2) if len(images) == 1 else self.cache.repeat(len(images), 1)

    model = Cached()
    with torch.no_grad():
        oracle(model)(draw(1, 3, 8, 8)).fill_(9)
    assert model.cache.tolist() == [[1, 2]]


@pytest.mark.parametrize("gradient", [False, True])
def test_model_that_writes_into_its_input(gradient: bool) -> None:
    class Shift(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return linear()(images.sub_(0.5))  # type: ignore[no-any-return]

    images = draw(2, 3, 8, 8).requires_grad_(gradient)
    before = images.detach().clone()
    logits = oracle(Shift())(images)
    assert torch.equal(images, before)
    assert torch.equal(logits, linear()(before - 0.5))


def test_half_precision_model_has_float32_logits() -> None:
    spy = Spy(linear().half())
    target, point = oracle(spy), draw(3, 3, 8, 8).requires_grad_(True)
    logits = target(point)
    assert spy.dtypes == [torch.float16]
    assert logits.dtype is torch.float32
    gradient = torch.autograd.grad(logits[:, 0].sum(), point)[0]
    assert gradient.dtype is torch.float32
    assert (gradient != 0).any()


@pytest.mark.parametrize(
    ("model", "dtype"),
    [(linear(), torch.float32), (linear().half(), torch.float16), (linear().double(), torch.float64)],
    ids=["float", "half", "double"],
)
def test_dtype_of_the_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    assert parameter_dtype(model) is dtype


def test_dtype_without_parameters_is_float32() -> None:
    assert parameter_dtype(Detach()) is torch.float32


def test_frozen_oracle_repeats_the_noise() -> None:
    target, images = oracle(Noisy(linear())), draw(2, 3, 8, 8)
    with target.frozen():
        first, second = target(images), target(images)
    assert torch.equal(first, second)
    assert torch.equal(target(images), first)
    assert not torch.equal(target(images), first)


def test_connected_graph_with_zero_gradient() -> None:
    assert oracle(linear()).connected(draw(1, 3, 8, 8))
    assert oracle(nn.Sequential(Quantize(), linear())).connected(draw(1, 3, 8, 8))
    assert oracle(QuantizeInPlace()).connected(draw(1, 3, 8, 8))
    assert not oracle(nn.Sequential(Detach(), linear())).connected(draw(1, 3, 8, 8))
    assert not oracle(nn.Sequential(linear(), Detach())).connected(draw(1, 3, 8, 8))
