"""Defenses that compute gradients while they classify."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad as imported_by_name

from pytest_gradmask.probes.inference import optimizes_at_inference
from tests.toys import IMAGES, Detach, KillGradient, NearIdentityConv, Noisy, linear, masked, oracle


def by_grad(images: Tensor) -> Tensor:
    with torch.enable_grad():
        point = images.detach().requires_grad_(True)
        return images - 0.01 * imported_by_name((point**2).sum(), point)[0]


def by_backward(images: Tensor) -> Tensor:
    with torch.enable_grad():
        point = images.detach().requires_grad_(True)
        (point**2).sum().backward()
    assert point.grad is not None
    return images - 0.01 * point.grad


class Purify(nn.Module):
    """A classifier behind a step of an optimisation."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step, self.backbone = step, linear()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.step(images))  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", [by_grad, by_backward])
def test_optimising_forward_does_not_undermine_attacks(step: Callable[[Tensor], Tensor]) -> None:
    (finding,) = optimizes_at_inference(oracle(Purify(step).eval()), IMAGES)
    assert (finding.id, finding.undermines_attacks) == ("optimizes-at-inference", False)
    assert "calls autograd" in finding.message


def test_forward_that_switches_gradients_on() -> None:
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
def test_plain_forward_has_no_finding(model: nn.Module) -> None:
    assert optimizes_at_inference(oracle(model), IMAGES) == []


def test_recorded_calls_are_not_kept() -> None:
    optimizes_at_inference(oracle(Purify(by_grad).eval()), IMAGES)
    assert optimizes_at_inference(oracle(linear()), IMAGES) == []
    assert torch.is_grad_enabled()
