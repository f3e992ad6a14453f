"""Parts of a defense that are bypassed on the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed, described, removed
from pytest_gradmask.defense import FromImages
from pytest_gradmask.loading.models.composites import Composite
from pytest_gradmask.loading.models.front_ends import DnCNN, calibrate
from tests.toys import (
    Detach,
    KillGradient,
    NearIdentityConv,
    Quantize,
    QuantizeInPlace,
    convolutional,
    draw,
    linear,
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


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    """Gradient of the sum of the first logits with respect to the images."""
    point = images.clone().requires_grad_(True)
    return torch.autograd.grad(model(point.clone())[:, 0].sum(), point)[0]


def overridden(model: nn.Module) -> list[str]:
    """Names of submodules whose forward was replaced."""
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@every_front_end
def test_bypassed_front_end_is_the_identity(make: Callable[[], nn.Module]) -> None:
    backbone, images = linear(), draw(4, 3, 8, 8)
    model = nn.Sequential(make(), backbone).eval()
    rewired = bypassed(model, {"0": None})
    with torch.no_grad():
        assert torch.equal(rewired(images.clone()), model(images.clone()))
    assert torch.equal(rewired(images.clone()), model(images.clone()))
    # The backbone is linear, so its gradient is the same wherever it is taken.
    assert torch.equal(gradient(rewired, images), gradient(backbone, images))


def test_gradient_at_the_output_of_the_front_end() -> None:
    class Square(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) ** 2

    images = draw(3, 3, 8, 8)
    model = nn.Sequential(Quantize(), Square(), nn.Linear(192, 2))
    quantized = torch.round(images * 16) / 16
    found = gradient(bypassed(model, {"0": None}), images)
    assert torch.equal(found, gradient(nn.Sequential(*model[1:]), quantized))


def test_approximation_changes_the_gradient_only() -> None:
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


def test_empty_bypass() -> None:
    images, model = draw(4, 3, 8, 8), convolutional()
    assert torch.equal(gradient(bypassed(model, {}), images), gradient(model, images))


def test_removed_front_end() -> None:
    images, backbone = draw(4, 3, 8, 8), convolutional()
    model = Composite(NearIdentityConv(scale=1.0), backbone)
    assert torch.equal(removed(model, {"front_end": None})(images), backbone(images))
    assert torch.equal(gradient(removed(model, {"front_end": None}), images), gradient(backbone, images))
    assert not torch.equal(model(images), backbone(images))


@pytest.mark.parametrize("rewire", [bypassed, removed])
def test_model_is_unchanged_if_it_raises(rewire: Callable[..., nn.Module]) -> None:
    class Raise(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError(f"no images like these {len(images)}")

    model = nn.Sequential(NearIdentityConv(), Raise())
    with pytest.raises(RuntimeError, match="no images like these 2"):
        rewire(model, {"0": None})(draw(2, 3, 8, 8))
    assert overridden(model) == []


def test_model_is_unchanged_if_its_front_end_raises() -> None:
    model = nn.Sequential(nn.Conv2d(5, 5, 3), linear())
    with pytest.raises(RuntimeError):
        bypassed(model, {"0": None})(draw(2, 3, 8, 8))
    assert overridden(model) == []


def test_replaced_forward_is_restored() -> None:
    model = nn.Sequential(Quantize(), linear())
    images = draw(2, 3, 8, 8)

    def brighter(images: Tensor) -> Tensor:
        return images + 1

    model[0].forward = brighter
    before = model(images)
    assert torch.equal(bypassed(model, {"0": None})(images), before)
    assert model[0].__dict__["forward"] is brighter


def test_rewired_models_are_independent() -> None:
    model, images = nn.Sequential(Quantize(), linear()), draw(2, 3, 8, 8)
    first, second = bypassed(model, {"0": None}), removed(model, {"0": None})
    before = model(images)
    second(images)
    assert torch.equal(first(images), before)
    assert torch.equal(model(images), before)
    assert (gradient(model, images) == 0).all()


class Inline(nn.Module):
    """Changes its images in its ``forward``, before ``net``."""

    def __init__(self, change: Callable[[Tensor], Tensor], net: nn.Module) -> None:
        super().__init__()
        self.change, self.net = change, net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.change(images))  # type: ignore[no-any-return]


def quantized(images: Tensor) -> Tensor:
    return torch.round(images * 16) / 16


def test_code_before_a_submodule_is_bypassed() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = Inline(quantized, backbone)
    rewired = bypassed(model, {"net": FromImages()})
    assert torch.equal(rewired(images), model(images))
    assert (gradient(model, images) == 0).all()
    assert torch.equal(gradient(rewired, images), gradient(backbone, images))


def test_approximation_of_code_before_a_submodule() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = Inline(lambda images: 1 - 2 * quantized(images), backbone)
    rewired = bypassed(model, {"net": FromImages(lambda images: 1 - 2 * images)})
    assert torch.equal(rewired(images), model(images))
    torch.testing.assert_close(gradient(rewired, images), -2 * gradient(backbone, images))


def test_approximation_gets_the_original_images() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = Inline(lambda images: images.mul_(0).add_(0.5), backbone)
    rewired = removed(model, {"net": FromImages()})
    assert torch.equal(rewired(images.clone()), backbone(images))


def test_removed_code_before_a_submodule() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = Inline(quantized, backbone)
    assert torch.equal(removed(model, {"net": FromImages()})(images), backbone(images))
    assert torch.equal(removed(model, {"net": FromImages(torch.sqrt)})(images), backbone(images.sqrt()))


def test_removed_runs_approximations_forward() -> None:
    images, backbone = draw(4, 3, 8, 8), linear()
    model = nn.Sequential(Quantize(), backbone)
    assert torch.equal(removed(model, {"0": torch.sqrt})(images), backbone(images.sqrt()))


@pytest.mark.parametrize("rewire", [bypassed, removed])
@pytest.mark.parametrize("given", [lambda module: module, FromImages], ids=["of a submodule", "of the code before it"])
def test_an_approximation_moves_with_the_model(
    rewire: Callable[..., nn.Module], given: Callable[[nn.Module], object]
) -> None:
    approximation = nn.Conv2d(3, 3, 1)
    moved = rewire(linear(), {"0": given(approximation)}).to("meta")
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    assert approximation.weight.device.type == "meta"


def test_described() -> None:
    assert described({"front_end": None, "act": torch.relu, "net": FromImages()}) == (
        "front_end",
        "act",
        "all before net",
    )
