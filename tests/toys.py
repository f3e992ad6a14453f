"""Tiny models with known behaviour, and images for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle, parameter_dtype
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.run import audit
from pytest_gradmask.defense import Defense
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit

Shape = tuple[int, int, int]

CPU = torch.device("cpu")

#: A budget for toys: 24 images suffice for a verdict with a margin of 25 percentage points.
TINY = Budget(
    name="tiny",
    samples=24,
    margin=0.25,
    apgd_steps=5,
    targets=2,
    fab_steps=3,
    square_queries=60,
    bpda_steps=10,
    zero_order_steps=5,
    zero_order_pairs=5,
    eot=2,
    pilot_samples=5,
)


def seeded(seed: int = 0) -> torch.Generator:
    """A torch generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Images, uniform in [0, 1]."""
    return torch.rand(shape, generator=seeded(seed))


def global_state() -> tuple[Any, ...]:
    """State of the global generators of Python, NumPy and torch, to compare."""
    numpy = np.random.get_state(legacy=False)
    key, pos = numpy["state"]["key"].tolist(), numpy["state"]["pos"]
    return random.getstate(), key, pos, numpy["has_gauss"], numpy["gauss"], torch.get_rng_state().tolist()


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def linear(classes: int = 4, seed: int = 0, shape: Shape = (3, 8, 8)) -> nn.Sequential:
    """A linear classifier with normal weights, centred so that every class is as likely."""
    channels, height, width = shape
    layer = nn.Linear(channels * height * width, classes)
    with torch.no_grad():
        layer.weight.normal_(generator=seeded(seed))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def convolutional(classes: int = 4, seed: int = 0) -> nn.Sequential:
    """A small network with one hidden layer, for 3 x 8 x 8 images."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, classes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=seeded(seed))
    return model.eval()


@torch.no_grad()
def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """What the model calls these images."""
    labels: Tensor = model(images.to(parameter_dtype(model), copy=True)).argmax(1)
    return labels


def oracle(model: nn.Module, **arguments: Any) -> Oracle:
    """The model as attacks see it."""
    return Oracle(model, RandomStream(0, CPU), **arguments)


class Recorder(nn.Module):
    """Records its inputs in ``asked``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        return self.model(images)  # type: ignore[no-any-return]


class Boom:
    """Sets ``opened`` when it is unpickled."""

    opened = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Boom, "opened", True)


class Half(nn.Module):
    """A binary linear classifier: class 1 if ``w.x + b`` is above 0. Its minimal perturbations are known exactly."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias

    def score(self, images: Tensor) -> Tensor:
        """``w.x + b``, N."""
        return (images * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, images: Tensor) -> Tensor:
        score = self.score(images)
        return torch.stack([-score / 2, score / 2], 1)


def half_problem(count: int, shape: Shape, norm: str, distance: float, seed: int = 0) -> tuple[Half, Tensor, Tensor]:
    """A binary linear classifier with images and labels, each exactly ``distance`` from the decision boundary."""
    generator = seeded(seed)
    weight = torch.randn(shape, generator=generator)
    dual = weight.norm(p={"Linf": 1, "L2": 2, "L1": float("inf")}[norm])
    weight = 10 * weight / dual  # small scores: a saturated cross-entropy has no gradient
    model = Half(weight, bias=0.3)
    images = torch.randn(count, *shape, generator=generator)
    labels = torch.arange(count) % 2
    scores = (2 * labels - 1) * distance * 10
    with torch.no_grad():
        images = images + ((scores - model.score(images)) / weight.norm() ** 2).view(-1, 1, 1, 1) * weight
    return model, images, labels


class Quantize(nn.Module):
    """A front end that rounds pixels: almost the identity, with a gradient of zero."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.round(images * 16) / 16


class Detach(nn.Module):
    """A front end that is the identity, detached from the graph."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images * 0.99

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


class KillGradient(nn.Module):
    """A front end that is nearly the identity and whose backward pass returns zeros."""

    def forward(self, images: Tensor) -> Tensor:
        return _NoGradient.apply(images)  # type: ignore[no-any-return]


class RaisingBackward(torch.autograd.Function):
    """The identity, with a backward pass that raises."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("no way back")


class QuantizeInPlace(nn.Module):
    """As `Quantize`, but it overwrites its input."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(16).round_().div_(16)


class NearIdentityConv(nn.Module):
    """``x`` plus a small convolution of it, as the front ends of arXiv:2402.17018."""

    def __init__(self, scale: float = 0.02) -> None:
        super().__init__()
        self.residual = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, scale, generator=seeded())

    def forward(self, images: Tensor) -> Tensor:
        return images + self.residual(images)  # type: ignore[no-any-return]


class Constant(nn.Module):
    """The same logits for every image."""

    logits: Tensor

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.repeat(len(images), 1)


class Counting(nn.Module):
    """Counts its calls in a buffer. Each call adds ``growth`` to the factor of its logits, which is 1 at first."""

    calls: Tensor

    def __init__(self, model: nn.Module, growth: float = 0.0) -> None:
        super().__init__()
        self.model, self.growth = model, growth
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.model(images) * (1 + self.growth * self.calls)  # type: ignore[no-any-return]


class Softmax(nn.Module):
    """A classifier that returns probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(1)  # type: ignore[no-any-return]


class Noisy(nn.Module):
    """Normal noise on the logits, from the global torch generator."""

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return logits + self.scale * torch.randn_like(logits)  # type: ignore[no-any-return]


class Spy(nn.Module):
    """Records the dtype and size of each batch, and whether its gradient is tracked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.dtypes: list[torch.dtype] = []
        self.counts: list[int] = []
        self.gradients: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.dtypes.append(images.dtype)
        self.counts.append(len(images))
        self.gradients.append(images.requires_grad and torch.is_grad_enabled())
        return self.model(images)  # type: ignore[no-any-return]


IMAGES = draw(24, 3, 8, 8)
#: At this radius nearly every image of the linear toy can be broken.
THREAT = ThreatModel(0.1)


def audited(defense: Defense | nn.Module, images: Tensor = IMAGES, **arguments: Any) -> Audit:
    """An audit whose labels are the defense's clean predictions, unless ``labels`` is passed."""
    model = defense.model if isinstance(defense, Defense) else defense
    with torch.random.fork_rng(devices=[]):
        arguments.setdefault("labels", predictions(model, images))
    return audit(defense, images, **{"threat": THREAT, "budget": TINY, **arguments})


def timeless(audit: Audit) -> Audit:
    """The audit without its times."""
    return replace(audit, seconds=0.0, attacks=tuple(replace(attack, seconds=0.0) for attack in audit.attacks))


def masked(make: Callable[[], nn.Module], backbone: nn.Module | None = None) -> nn.Sequential:
    """A front end before a backbone, by default the linear toy."""
    return nn.Sequential(make(), backbone or linear()).eval()
