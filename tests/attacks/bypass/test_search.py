"""The search for parts to bypass: front ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.search import find_bypass
from pytest_gradmask.loading.models.backbones import Normalize
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from tests.attacks.bypass.test_bpda import every_front_end
from tests.toys import (
    Detach,
    KillGradient,
    NearIdentityConv,
    Quantize,
    QuantizeInPlace,
    convolutional,
    draw,
    linear,
    seeded,
)


@every_front_end
def test_front_end_in_a_sequential(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(make(), convolutional()).eval()
    assert list(find_bypass(model, draw(8, 3, 8, 8))) == ["0"]


@every_front_end
def test_front_end_in_a_custom_module(make: Callable[[], nn.Module]) -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.ModuleDict({"net": convolutional()})
            self.purifier = nn.Sequential(make())

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier["net"](self.purifier(images))  # type: ignore[no-any-return]

    assert list(find_bypass(Custom().eval(), draw(8, 3, 8, 8))) == ["purifier"]


def test_outermost_of_nested_front_ends() -> None:
    chain = nn.Sequential(nn.Sequential(Quantize(), Detach()), Quantize())
    model = nn.Sequential(chain, convolutional()).eval()
    assert list(find_bypass(model, draw(8, 3, 8, 8))) == ["0"]


def test_consecutive_front_ends() -> None:
    model = nn.Sequential(Quantize(), NearIdentityConv(), convolutional()).eval()
    assert list(find_bypass(model, draw(8, 3, 8, 8))) == ["0", "1"]


class Chatty(nn.Module):
    """Returns its image and a word."""

    def forward(self, images: Tensor) -> tuple[Tensor, str]:
        return images * 1, "hello"


class Sum(nn.Module):
    """Takes two images."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first + second) / 2


class Odd(nn.Module):
    """Has submodules with other inputs and outputs than those of a front end."""

    def __init__(self) -> None:
        super().__init__()
        self.chatty, self.sum, self.backbone = Chatty(), Sum(), convolutional()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.sum(images, self.chatty(images)[0]))  # type: ignore[no-any-return]


class Reused(nn.Module):
    """Uses a submodule twice. It is near the identity only for the second input, which is brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize, self.backbone = Quantize(), convolutional()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.quantize(images / 100) + self.quantize(images))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(convolutional(), id="classifier"),
        pytest.param(linear(), id="linear classifier"),
        pytest.param(nn.Sequential(Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), convolutional()), id="normalize"),
        pytest.param(nn.Sequential(NearIdentityConv(scale=1.0), convolutional()), id="conv far from the identity"),
        pytest.param(nn.Sequential(nn.Identity(), nn.Dropout(), convolutional()), id="identity and idle dropout"),
        pytest.param(nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2), convolutional()), id="resized"),
        pytest.param(Odd(), id="odd signatures"),
    ],
)
def test_models_without_a_bypass(model: nn.Module) -> None:
    assert list(find_bypass(model.eval(), draw(8, 3, 8, 8))) == []


def test_front_end_in_all_of_its_calls() -> None:
    found = find_bypass(Reused().eval(), draw(8, 3, 8, 8))
    assert list(found) == ["quantize"]  # because it blocks the gradient
    assert found["quantize"] is not None


def test_all_members_of_a_randomized_ensemble() -> None:
    members = [nn.Sequential(make(), convolutional()) for make in (Quantize, KillGradient, NearIdentityConv)]
    model = RandomizedEnsemble(members).eval()
    torch.manual_seed(0)
    assert list(find_bypass(model, draw(8, 3, 8, 8), forwards=50)) == ["members.0.0", "members.1.0", "members.2.0"]
    assert len(find_bypass(model, draw(8, 3, 8, 8), forwards=1)) == 1


def test_half_precision_model() -> None:
    model = nn.Sequential(NearIdentityConv(), linear()).eval().half()
    assert list(find_bypass(model, draw(8, 3, 8, 8))) == ["0"]


@pytest.mark.parametrize("raises", [False, True])
def test_model_and_images_are_unchanged(raises: bool) -> None:
    def interrupt(_: nn.Module, inputs: Any, output: Any) -> None:
        if raises:
            raise RuntimeError(f"no {type(inputs)} {type(output)}")

    model, images = nn.Sequential(QuantizeInPlace(), convolutional()), torch.rand(4, 3, 8, 8, generator=seeded())
    model[1].register_forward_hook(interrupt)
    before = images.clone()
    if raises:
        with pytest.raises(RuntimeError, match="no "):
            find_bypass(model, images)
    else:
        find_bypass(model, images)
    assert torch.equal(images, before)
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert len(hooks) == 1
