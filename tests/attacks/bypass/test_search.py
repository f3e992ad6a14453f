"""The search for parts to bypass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_gradmask.attacks.bypass.approximations import dequantized, fit_affine, fit_convolution
from pytest_gradmask.attacks.bypass.bpda import bypassed, removed
from pytest_gradmask.attacks.bypass.search import find_bypass
from pytest_gradmask.defense import FromImages
from pytest_gradmask.loading.models.backbones import Normalize
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from tests.attacks.bypass.test_bpda import Inline, every_front_end, gradient, quantized
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


# code before a submodule


def scaled(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


@pytest.mark.parametrize(
    ("change", "slope"),
    [
        (quantized, 1),
        (torch.detach, 1),
        (lambda images: scaled(quantized(images)), 4),
        (lambda images: 1 - quantized(images), -1),
        (lambda images: images + 0.02 * torch.sin(500 * images), 1),
    ],
    ids=["quantized", "detached", "quantized and scaled", "inverted", "ripple"],
)
def test_code_with_a_misleading_gradient(change: Callable[[Tensor], Tensor], slope: float) -> None:
    model, images = Inline(change, convolutional()).eval(), draw(8, 3, 8, 8)
    found = find_bypass(model, images)
    assert list(found) == ["net"]
    assert isinstance(found["net"], FromImages)
    approximation = found["net"].function
    assert approximation is not None
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(approximation(point).sum(), point)
    torch.testing.assert_close(gradient, torch.full_like(images, slope), rtol=0.05, atol=0)
    assert torch.equal(bypassed(model, found)(images), model(images))


@pytest.mark.parametrize("change", [scaled, lambda images: images.clamp(0, 1), lambda images: images * 1])
def test_code_with_a_useful_gradient(change: Callable[[Tensor], Tensor]) -> None:
    assert find_bypass(Inline(change, convolutional()).eval(), draw(8, 3, 8, 8)) == {}


class Descending(nn.Module):
    """Changes its images along the gradient of its network, and hides the whole change, or only its size."""

    def __init__(self, net: nn.Module, *, hides_images: bool) -> None:
        super().__init__()
        self.net, self.hides_images = net, hides_images

    def forward(self, images: Tensor) -> Tensor:
        point = images.detach().requires_grad_(True)
        with torch.enable_grad():
            (ascent,) = torch.autograd.grad(self.net(point).logsumexp(1).sum(), point)
        return self.net((point.detach() if self.hides_images else images) + 0.01 * ascent.sign())  # type: ignore[no-any-return]


@pytest.mark.parametrize("net", [convolutional, lambda: nn.Sequential(convolutional(), nn.Identity())])
def test_images_that_a_defense_changes_by_its_own_gradient(net: Callable[[], nn.Module]) -> None:
    model, images = Descending(net(), hides_images=True).eval(), draw(8, 3, 8, 8)
    found = find_bypass(model, images)
    assert list(found) == ["net"]
    assert torch.equal(bypassed(model, found)(images), model(images)), "it still gets its own gradient"
    assert (gradient(bypassed(model, found), images) != 0).any()
    assert torch.isfinite(removed(model, found)(images)).all()
    assert find_bypass(Descending(net(), hides_images=False).eval(), images) == {}


def test_code_after_a_front_end() -> None:
    model = nn.Sequential(NearIdentityConv(), Inline(quantized, convolutional())).eval()
    found = find_bypass(model, draw(8, 3, 8, 8))
    assert list(found) == ["0", "1.net"]
    assert found["0"] is None
    assert (gradient(model, draw(8, 3, 8, 8)) == 0).all()
    assert not (gradient(bypassed(model, found), draw(8, 3, 8, 8)) == 0).all()


# parts that block the gradient


class Thermometer(nn.Module):
    """Thermometer encoding with nine thresholds for each channel (Buckman et al. 2018)."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([(images > level / 10).float() for level in range(1, 10)], 1)


class Decoding(nn.Module):
    """Decodes a thermometer encoding."""

    def forward(self, codes: Tensor) -> Tensor:
        return codes.view(len(codes), 9, 3, *codes.shape[2:]).mean(1)


@pytest.mark.parametrize("inline", [False, True])
def test_network_is_fitted_to_blocking_code(inline: bool) -> None:
    net, images = nn.Sequential(Decoding(), convolutional()), draw(8, 3, 8, 8)
    model = (Inline(Thermometer(), net) if inline else nn.Sequential(Thermometer(), net)).eval()
    found = find_bypass(model, images)
    assert len(found) == 1
    rewired = bypassed(model, found)
    assert torch.equal(rewired(images), model(images))
    true, ours = gradient(net[1], images).flatten(1), gradient(rewired, images).flatten(1)
    assert bool((torch.nn.functional.cosine_similarity(true, ours) > 0.5).all())


def test_identity_replaces_a_blocking_activation() -> None:
    class Step(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return (values > 0).float()

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), Step(), nn.Linear(16, 4)).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == {"2": None}


class _Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images * 0.5

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError(f"no backward pass for {len(gradients)} gradients")


class Broken(nn.Module):
    """Has a backward pass that raises."""

    def forward(self, images: Tensor) -> Tensor:
        return _Broken.apply(images)  # type: ignore[no-any-return]


def test_backward_pass_that_raises() -> None:
    model, images = nn.Sequential(Broken(), convolutional()).eval(), draw(8, 3, 8, 8)
    found = find_bypass(model, images)
    assert list(found) == ["0"]
    assert bool(gradient(bypassed(model, found), images).any())


def test_model_that_refuses_gradients() -> None:
    def refuse(images: Tensor) -> Tensor:
        if images.requires_grad:
            raise RuntimeError("no way back")
        return images

    model = nn.Sequential(Inline(refuse, Quantize()), convolutional()).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == {"0": None}


def test_innermost_of_nested_blocking_modules() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), Quantize(), nn.Conv2d(5, 5, 3, padding=1))
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(320, 4)).eval()
    assert list(find_bypass(model, draw(8, 3, 8, 8))) == ["0.1"]


class Winners(nn.Module):
    """Keeps the largest fifth of all values (k-WTA; Xiao et al. 2020, arXiv:1905.10510)."""

    def forward(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        least = flat.topk(flat.shape[1] // 5, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(values)


@pytest.mark.parametrize(("activation", "found"), [(Winners(), {"1": torch.relu}), (nn.ReLU(), {}), (nn.GELU(), {})])
def test_relu_replaces_a_sparsifying_activation(activation: nn.Module, found: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Flatten(), nn.Linear(288, 4)).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == found


def test_blocking_modules_that_change_the_shape() -> None:
    model = nn.Sequential(convolutional(), nn.Softmax(1), Detach(), nn.Linear(4, 3)).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == {"2": None}
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(192, 9)), Inline(torch.detach, nn.Linear(9, 4))).eval()
    assert find_bypass(model, draw(8, 3, 8, 8)) == {}


def test_global_random_state_is_unchanged() -> None:
    model = nn.Sequential(Thermometer(), Decoding(), convolutional()).eval()
    before = torch.get_rng_state()
    find_bypass(model, draw(8, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


# fits


def test_fit_affine() -> None:
    images = draw(4, 3, 8, 8)
    slope, offset = torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1), torch.tensor([0.1, 1.0, 0.0]).view(1, 3, 1, 1)
    approximation, error = fit_affine(images, images * slope + offset)
    assert error < 1e-5
    torch.testing.assert_close(approximation(images), images * slope + offset)
    assert fit_affine(images, draw(4, 3, 8, 8, seed=1))[1] > 0.9


def test_no_fit_to_noise_or_another_size() -> None:
    images = draw(8, 3, 16, 16)
    assert fit_convolution(images, draw(8, 3, 16, 16, seed=1), seed=0) is None
    assert fit_convolution(images, images[:, :, ::2], seed=0) is None
    assert fit_convolution(images, torch.ones(8, 3, 16, 16), seed=0) is None


def test_seed_decides_the_fit() -> None:
    images = draw(8, 3, 8, 8)
    first, again, other = (fit_convolution(images, 1 - images, seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


# checkpoints, and backward passes that raise


class Checkpointed(nn.Module):
    """Runs a part in a checkpoint, which refuses `torch.autograd.grad` if it is re-entrant."""

    def __init__(self, part: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.part, self.rest, self.reentrant = part, convolutional(), reentrant

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(checkpoint(self.part, images, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("part", "found"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()), []),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Quantize()), ["0.part.1"]),
    ],
    ids=["honest", "quantized"],
)
def test_checkpoint_blocks_no_gradient(part: Callable[[], nn.Module], found: list[str], reentrant: bool) -> None:
    model, images = nn.Sequential(Checkpointed(part(), reentrant=reentrant)).eval(), draw(8, 3, 8, 8)
    bypass = find_bypass(model, images)
    assert list(bypass) == found
    assert bool(gradient(bypassed(model, bypass), images).any())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_of_parameters_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), convolutional()).eval()
    model(draw(2, 3, 8, 8)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    find_bypass(model, draw(8, 3, 8, 8))
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_int8_layer_in_floating_point() -> None:
    layer = nn.Sequential(nn.Linear(6, 5))
    quantized_layer = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)[0]
    approximation, inputs = dequantized(quantized_layer), draw(4, 6)
    assert approximation is not None
    torch.testing.assert_close(approximation(inputs), layer(inputs), atol=0.02, rtol=0)
    assert dequantized(layer[0]) is None
