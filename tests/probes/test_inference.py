"""Defenses that take gradients while they classify."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import grad as imported_by_name

from pytest_gradmask.probes.inference import optimizes_at_inference
from tests.toys import IMAGES, Detach, KillGradient, NearIdentityConv, Noisy, linear, masked, oracle


def by_grad(images: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        point = images.detach().requires_grad_(True)
        return images - 0.01 * imported_by_name((point**2).sum(), point)[0]


def by_backward(images: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        point = images.detach().requires_grad_(True)
        (point**2).sum().backward()
    assert point.grad is not None
    return images - 0.01 * point.grad


class Purify(nn.Module):
    """A classifier behind a step of some optimisation."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.step, self.backbone = step, linear()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(self.step(images))  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", [by_grad, by_backward])
def test_an_optimising_forward_is_found_and_undermines_nothing(step: Callable[[torch.Tensor], torch.Tensor]) -> None:
    (finding,) = optimizes_at_inference(oracle(Purify(step).eval()), IMAGES)
    assert (finding.id, finding.undermines_attacks) == ("optimizes-at-inference", False)
    assert "calls autograd" in finding.message


def test_a_forward_that_switches_gradients_on_is_found() -> None:
    (finding,) = optimizes_at_inference(oracle(Purify(torch.enable_grad()(lambda images: 2 * images)).eval()), IMAGES)
    assert "a forward pass switches gradients on:" in finding.message


@pytest.mark.parametrize(
    "model",
    [
        linear(),
        masked(Detach),
        masked(KillGradient),
        masked(NearIdentityConv),
        Noisy(linear()).eval(),
        Purify(torch.no_grad()(lambda images: 2 * images)).eval(),
    ],
    ids=["linear", "detached", "gradient killer", "convolution", "noisy", "without gradients"],
)
def test_a_plain_forward_is_no_finding(model: nn.Module) -> None:
    assert optimizes_at_inference(oracle(model), IMAGES) == []


def test_it_looks_at_the_next_defense_with_fresh_eyes() -> None:
    optimizes_at_inference(oracle(Purify(by_grad).eval()), IMAGES)
    assert optimizes_at_inference(oracle(linear()), IMAGES) == []
    assert torch.is_grad_enabled()
