"""Bypassing parts of a defense on the backward pass, and finding which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.attacks.bpda import bypassed, find_bypass, removed
from pytest_gradmask.models.backbones import Normalize
from pytest_gradmask.models.composites import Composite, RandomizedEnsemble
from pytest_gradmask.models.front_ends import DnCNN, calibrate
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

FRONT_ENDS: dict[str, Callable[[], nn.Module]] = {
    "quantized": Quantize,
    "quantized-in-place": QuantizeInPlace,
    "detached": Detach,
    "gradient-killer": KillGradient,
    "near-identity-conv": NearIdentityConv,
    "dncnn": lambda: calibrate(DnCNN(depth=3, width=4), draw(32, 3, 8, 8, seed=1), 0.02),
}
every_front_end = pytest.mark.parametrize("make", FRONT_ENDS.values(), ids=FRONT_ENDS.keys())


def gradient(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Of the sum of the first logits with respect to the images."""
    point = images.clone().requires_grad_(True)
    return torch.autograd.grad(model(point.clone())[:, 0].sum(), point)[0]


def overridden(model: nn.Module) -> list[str]:
    """Names of submodules whose forward was replaced."""
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@every_front_end
def test_bypassed_keeps_the_output_and_takes_the_front_end_for_the_identity(make: Callable[[], nn.Module]) -> None:
    backbone, images = linear(), draw(4, 3, 8, 8)
    model = nn.Sequential(make(), backbone).eval()
    rewired = bypassed(model, {"0": None})
    with torch.no_grad():
        assert torch.equal(rewired(images.clone()), model(images.clone()))
    assert torch.equal(rewired(images.clone()), model(images.clone()))
    # The backbone is linear, so its gradient is the same wherever it is taken.
    assert torch.equal(gradient(rewired, images), gradient(backbone, images))


def test_the_gradient_is_taken_at_the_front_ends_output() -> None:
    class Square(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) ** 2

    images = draw(3, 3, 8, 8)
    model = nn.Sequential(Quantize(), Square(), nn.Linear(192, 2))
    quantized = torch.round(images * 16) / 16
    found = gradient(bypassed(model, {"0": None}), images)
    assert torch.equal(found, gradient(nn.Sequential(*model[1:]), quantized))


def test_a_substitute_lends_its_gradient_only() -> None:
    backbone, images = linear(), draw(4, 3, 8, 8)
    model = nn.Sequential(Quantize(), backbone)
    rewired = bypassed(model, {"0": lambda images: 3 * images})
    assert torch.equal(rewired(images), model(images))
    torch.testing.assert_close(gradient(rewired, images), 3 * gradient(backbone, images))


def test_nested_names() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = nn.ModuleDict({"front_end": nn.Sequential(nn.Identity(), Quantize()), "backbone": backbone})
    composite = Composite(model["front_end"], model["backbone"])
    rewired = bypassed(composite, {"front_end.1": None})
    assert torch.equal(rewired(images), composite(images))
    assert torch.equal(gradient(rewired, images), gradient(backbone, images))


def test_several_at_once() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = nn.Sequential(Quantize(), KillGradient(), backbone)
    assert torch.equal(gradient(bypassed(model, {"0": None, "1": None}), images), gradient(backbone, images))
    assert (gradient(bypassed(model, {"0": None}), images) == 0).all()


def test_nothing_to_bypass_changes_nothing() -> None:
    images, model = draw(4, 3, 8, 8), convolutional()
    assert torch.equal(gradient(bypassed(model, {}), images), gradient(model, images))


def test_removed_passes_the_input_on() -> None:
    images, backbone = draw(4, 3, 8, 8), convolutional()
    model = Composite(NearIdentityConv(scale=1.0), backbone)
    assert torch.equal(removed(model, ("front_end",))(images), backbone(images))
    assert torch.equal(gradient(removed(model, ("front_end",)), images), gradient(backbone, images))
    assert not torch.equal(model(images), backbone(images))


@pytest.mark.parametrize("rewire", [lambda model: bypassed(model, {"0": None}), lambda model: removed(model, ("0",))])
def test_the_model_is_unchanged_afterwards_even_if_it_raises(rewire: Callable[[nn.Module], nn.Module]) -> None:
    class Raise(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(f"no images like these {len(images)}")

    model = nn.Sequential(NearIdentityConv(), Raise())
    with pytest.raises(RuntimeError, match="no images like these 2"):
        rewire(model)(draw(2, 3, 8, 8))
    assert overridden(model) == []


def test_a_front_end_that_raises_leaves_the_model_unchanged() -> None:
    model = nn.Sequential(nn.Conv2d(5, 5, 3), linear())
    with pytest.raises(RuntimeError):
        bypassed(model, {"0": None})(draw(2, 3, 8, 8))
    assert overridden(model) == []


def test_a_forward_that_was_replaced_before_stays_so() -> None:
    model = nn.Sequential(Quantize(), linear())
    images = draw(2, 3, 8, 8)

    def brighter(images: torch.Tensor) -> torch.Tensor:
        return images + 1

    model[0].forward = brighter
    before = model(images)
    assert torch.equal(bypassed(model, {"0": None})(images), before)
    assert model[0].__dict__["forward"] is brighter


def test_rewired_models_do_not_disturb_one_another() -> None:
    model, images = nn.Sequential(Quantize(), linear()), draw(2, 3, 8, 8)
    first, second = bypassed(model, {"0": None}), removed(model, ("0",))
    before = model(images)
    second(images)
    assert torch.equal(first(images), before)
    assert torch.equal(model(images), before)
    assert (gradient(model, images) == 0).all()


@every_front_end
def test_find_bypass_finds_a_front_end_in_a_sequential(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(make(), convolutional()).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == ("0",)


@every_front_end
def test_find_bypass_finds_a_front_end_in_a_custom_module(make: Callable[[], nn.Module]) -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.ModuleDict({"net": convolutional()})
            self.purifier = nn.Sequential(make())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.classifier["net"](self.purifier(images))  # type: ignore[no-any-return]

    assert find_bypass(Custom().eval(), draw(8, 3, 8, 8)) == ("purifier",)


def test_find_bypass_keeps_the_outermost_of_nested_candidates_only() -> None:
    chain = nn.Sequential(nn.Sequential(Quantize(), Detach()), Quantize())
    model = nn.Sequential(chain, convolutional()).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == ("0",)


def test_find_bypass_finds_front_ends_one_after_the_other() -> None:
    model = nn.Sequential(Quantize(), NearIdentityConv(), convolutional()).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == ("0", "1")


class Chatty(nn.Module):
    """Returns its image and a word."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, str]:
        return images * 1, "hello"


class Sum(nn.Module):
    """Takes two images."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first + second) / 2


class Odd(nn.Module):
    """Has submodules that are no front ends, for reasons other than their distance from the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.chatty, self.sum, self.backbone = Chatty(), Sum(), convolutional()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(self.sum(images, self.chatty(images)[0]))  # type: ignore[no-any-return]


class Reused(nn.Module):
    """Uses a submodule twice: near the identity only for the brighter of its two inputs, which comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize, self.backbone = Quantize(), convolutional()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
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
        pytest.param(Reused(), id="near the identity once of twice"),
    ],
)
def test_find_bypass_finds_nothing_in(model: nn.Module) -> None:
    assert find_bypass(model.eval(), draw(8, 3, 8, 8)) == ()


def test_find_bypass_sees_every_member_of_a_randomized_ensemble() -> None:
    members = [nn.Sequential(make(), convolutional()) for make in (Quantize, KillGradient, NearIdentityConv)]
    model = RandomizedEnsemble(members).eval()
    torch.manual_seed(0)
    assert find_bypass(model, draw(8, 3, 8, 8), forwards=50) == ("members.0.0", "members.1.0", "members.2.0")
    assert len(find_bypass(model, draw(8, 3, 8, 8), forwards=1)) == 1


def test_find_bypass_gives_a_half_precision_model_half_precision_images() -> None:
    model = nn.Sequential(NearIdentityConv(), linear()).eval().half()
    assert find_bypass(model, draw(8, 3, 8, 8)) == ("0",)


@pytest.mark.parametrize("raises", [False, True])
def test_find_bypass_leaves_no_trace(raises: bool) -> None:
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
