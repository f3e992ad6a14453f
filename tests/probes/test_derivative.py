"""Gradients that are not the derivative of the logits, and where they stop to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pytest_gradmask import load_model
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.probes import derivative
from pytest_gradmask.probes.derivative import wrong_gradient
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import ON_GRID, Ripple, Scale
from tests.toys import (
    IMAGES,
    Detach,
    KillGradient,
    Noisy,
    Quantize,
    RaisingBackward,
    Softmax,
    audited,
    convolutional,
    global_state,
    linear,
    masked,
    oracle,
    seeded,
)

THREAT = ThreatModel(8 / 255)
DATA = load_dataset("embedded")


class AddVector(torch.autograd.Function):
    """The identity, whose backward pass adds a fixed vector, 1.5 times as long as the gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        vector = torch.randn(gradient.shape[1:], generator=seeded(3)).to(gradient)
        norms = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
        return gradient + 1.5 * norms * (vector / vector.norm())  # type: ignore[no-any-return]


class OneDirection(torch.autograd.Function):
    """The identity in the newer form with a context set up apart; its gradient is rolled."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].roll(1, -1)


class Apply(nn.Module):
    """A module that calls an autograd function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class TensorHook(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs * 1
        if inputs.requires_grad:
            inputs.register_hook(lambda gradient: gradient.flip(-1))
        return inputs


class DetachedBranch(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 3 * inputs.detach().flip(-1)


class NoGradBranch(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            branch = 3 * inputs.flip(-1)
        return inputs + branch


class InPlaceData(nn.Module):
    """Changes its output behind the back of autograd."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs * 1
        outputs.data.add_(3 * inputs.detach().flip(-1))
        return outputs


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return torch.round(inputs * 16) / 16

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def flip_gradient(_: nn.Module, inputs: Any, __: Any) -> tuple[Tensor]:
    return (inputs[0].flip(-1),)


def add_hook() -> nn.Module:
    module = Scale(1.0)
    module.register_full_backward_hook(flip_gradient)
    return module


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "function": (lambda: Apply(AddVector.apply), "autograd.Function AddVector"),
    "function-with-setup": (lambda: Apply(OneDirection.apply), "autograd.Function OneDirection"),
    "backward-hook": (add_hook, "hook flip_gradient"),
    "tensor-hook": (TensorHook, "TensorHook.forward, which sets the hook TensorHook.forward.<locals>.<lambda>"),
    "detached-branch": (DetachedBranch, "DetachedBranch.forward"),
    "no-grad-branch": (NoGradBranch, "NoGradBranch.forward"),
    "in-place": (InPlaceData, "InPlaceData.forward"),
}


def check(model: nn.Module, images: Tensor = ON_GRID, seed: int = 0, **arguments: Any) -> list[Finding]:
    return wrong_gradient(oracle(model, **arguments), images, THREAT, seeded(seed))


def in_the_middle(module: nn.Module) -> nn.Sequential:
    """A small network with this module behind its first stage."""
    layers = list(convolutional())
    return nn.Sequential(*layers[:2], module, *layers[2:]).eval()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "name"), WRONG.values(), ids=WRONG.keys())
def test_wrong_gradients_are_found_and_named(make: Callable[[], nn.Module], name: str, seed: int) -> None:
    (finding,) = check(in_the_middle(make()), seed=seed)
    assert finding.id == "wrong-gradient"
    assert finding.undermines_attacks
    assert f"they part at 2, {name} (tests/probes/test_derivative.py:" in finding.message


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


class CannotBeCopied(nn.Module):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("one of a kind")

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 1


class InNumpy(torch.autograd.Function):
    """The identity in float32, by code that is not torch's."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return torch.from_numpy(inputs.numpy().astype("float32"))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


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


def test_probabilities_have_no_finding() -> None:
    assert check(Softmax(convolutional()).eval(), outputs="probabilities") == []


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
