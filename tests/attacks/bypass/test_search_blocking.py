"""The search for parts to bypass: submodules that block the gradient, and those whose backward pass raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_gradmask.attacks.bypass.approximations import dequantized
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.bypass.search import find_bypass
from tests.attacks.bypass.test_bpda import Inline, gradient
from tests.toys import (
    Detach,
    Quantize,
    convolutional,
    draw,
)


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
