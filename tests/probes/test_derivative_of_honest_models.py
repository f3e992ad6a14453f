"""Gradients that are the derivative of the logits: the probe has nothing to say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pytest_gradmask import load_model
from pytest_gradmask.probes.derivative import wrong_gradient
from tests.probes.gradient_toys import (
    DATA,
    THREAT,
    AddVector,
    Apply,
    CannotBeCopied,
    InNumpy,
    check,
    in_the_middle,
)
from tests.probes.probe_toys import ON_GRID, Ripple, Scale
from tests.toys import (
    Noisy,
    Softmax,
    convolutional,
    linear,
    oracle,
    seeded,
)


class Reentrant(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = convolutional(), reentrant

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.model, images, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


class Casts(nn.Module):
    """Asks for float32 and bfloat16, and has a constant that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.weight = convolutional(), torch.eye(3).view(3, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        mixed = nn.functional.conv2d(images.float(), self.weight.to(torch.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(mixed).float()  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(24, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.cell(images.permute(0, 2, 1, 3).flatten(2))[0].mean(1))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(24, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images.permute(0, 2, 1, 3).flatten(2)).mean(1))  # type: ignore[no-any-return]


def network(activation: nn.Module, *, wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3, padding=1)), nn.BatchNorm2d(8), activation, nn.MaxPool2d(2), nn.ReLU(inplace=True),
        wrap(nn.Conv2d(8, 8, 3)), nn.GroupNorm(2, 8), activation, nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


class Hooked(nn.Module):
    """A forward hook that calls another module, and a backward hook that only looks."""

    def __init__(self) -> None:
        super().__init__()
        self.model, other = convolutional(), nn.Conv2d(8, 8, 1)
        self.model[0].register_forward_hook(lambda module, inputs, output: output + other(output))
        self.model[2].register_full_backward_hook(lambda module, inputs, outputs: None)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)  # type: ignore[no-any-return]


HONEST: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "convolutional": convolutional,
    "float64": lambda: convolutional().double(),
    "bfloat16": lambda: convolutional().bfloat16(),
    "small logits": lambda: nn.Sequential(convolutional(), Scale(1e-6)),
    "large logits": lambda: nn.Sequential(convolutional(), Scale(1e6)),
    "large offset": lambda: nn.Sequential(convolutional(), Scale(1.0, 1e4)),
    "clamp": lambda: nn.Sequential(Apply(lambda images: images.clamp(0, 1)), convolutional()),
    "ripple": lambda: nn.Sequential(Ripple(20, 1e5), linear()),
    "gelu": lambda: network(nn.GELU()),
    "silu": lambda: network(nn.SiLU()),
    "softplus": lambda: network(nn.Softplus()),
    "relu": lambda: network(nn.ReLU()),
    "weight norm": lambda: network(nn.ReLU(), wrap=parametrizations.weight_norm),
    "spectral norm": lambda: network(nn.ReLU(), wrap=parametrizations.spectral_norm),
    "lstm": Recurrent,
    "attention": Encoder,
    "checkpoint": lambda: Reentrant(reentrant=False),
    "re-entrant checkpoint": lambda: Reentrant(reentrant=True),
    "casts": Casts,
    "hooks": Hooked,
    "not copied": lambda: nn.Sequential(CannotBeCopied(), convolutional()),
    "not in float64": lambda: nn.Sequential(Apply(InNumpy.apply), convolutional()),
    "noise": lambda: Noisy(convolutional(), 0.5),
    "batch norm across the batch": lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), convolutional()),
    "first in float32": lambda: in_the_middle(Apply(InNumpy.apply)),
}


@pytest.mark.parametrize("images", [ON_GRID, 0 * ON_GRID, 0 * ON_GRID + 1], ids=["drawn", "black", "white"])
@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST.keys())
def test_honest_models_have_no_finding(make: Callable[[], nn.Module], images: Tensor) -> None:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    target = oracle(model)
    with target.frozen():
        assert wrong_gradient(target, images, THREAT, seeded()) == []


@pytest.mark.parametrize("name", ["resnet-standard", "vgg-adversarial", "vit-standard", "vgg-standard-composite"])
def test_trained_models_have_no_finding(name: str) -> None:
    assert check(load_model(name).requires_grad_(False), DATA.images) == []


class Clamped(nn.Module):
    """Log-probabilities that are nearly sure, and clamped: their derivatives underflow."""

    def __init__(self, scale: float, *stages: nn.Module) -> None:
        super().__init__()
        self.model, self.scale = nn.Sequential(*stages, load_model("resnet-standard")), scale

    def forward(self, images: Tensor) -> Tensor:
        return (self.scale * self.model(images)).log_softmax(1).clamp(min=-8)  # type: ignore[no-any-return]


@pytest.mark.parametrize("scale", [10.0, 30.0, 300.0])
def test_derivatives_that_underflow_are_not_compared(scale: float) -> None:
    assert check(Clamped(scale).eval(), DATA.images) == []


def test_a_wrong_gradient_before_them_is_found() -> None:
    """Control: at this scale, most derivatives can be measured."""
    assert check(Clamped(1.0, Apply(AddVector.apply)).eval(), DATA.images) != []


def test_probabilities_have_no_finding() -> None:
    assert check(Softmax(convolutional()).eval(), outputs="probabilities") == []


class SeededNoise(nn.Module):
    """Adds the same noise to every image. A copy in float64 draws other numbers with the same seed."""

    def __init__(self) -> None:
        super().__init__()
        self.model = load_model("vgg-adversarial")

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(images.shape[1:], generator=seeded(), dtype=images.dtype)
        return self.model(images + 0.1 * noise)  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(3))
def test_noise_that_float64_draws_anew(seed: int) -> None:
    assert check(SeededNoise().eval().requires_grad_(False), DATA.images[4 * seed :], seed) == []
