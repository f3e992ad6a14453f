"""Honest models: small networks without any defense, varied in every respect that should not matter.

Each is a combination of architecture, training, scale of the logits, precision, wrapper and threat model. Everything
is drawn from the number of the model, so that the list never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn

from audits.honest.architectures import Checkpointed
from audits.honest.pictures import CLASSES
from pytest_gradmask import Dataset, ThreatModel, load_model, pgd
from pytest_gradmask.auditing.research import random_state_kept

#: How many models the whole list has.
NUMBER = 200
_STEPS, _BATCH, _RATE = 60, 64, 2e-3

#: Networks made here, for 3 x 32 x 32 images; the rest are checkpoints of this project.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    "mlp-tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.Tanh(), nn.Linear(64, CLASSES)),
    "cnn": lambda: nn.Sequential(*_convolution(3, 16), *_convolution(16, 32), *_classifier(32)),
    "cnn-norm": lambda: nn.Sequential(
        *_convolution(3, 16, norm=True), *_convolution(16, 32, norm=True), *_classifier(32)
    ),
    "cnn-pooled": lambda: nn.Sequential(
        *_convolution(3, 16, stride=1), nn.MaxPool2d(4), *_convolution(16, 32), *_classifier(32)
    ),
    "cnn-gelu": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), *_classifier(32)
    ),
    "residual": lambda: nn.Sequential(*_convolution(3, 16, norm=True), _Residual(16), _Residual(16), *_classifier(16)),
    "attention": lambda: _Attention(),
}  # fmt: skip
CHECKPOINTS = tuple(
    f"{network}-{training}" for network in ("resnet", "vgg", "vit") for training in ("standard", "adversarial")
)
TRAININGS = ("random", "standard", "adversarial")
SCALES = (0.01, 0.1, 1.0, 10.0)
PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
WRAPPERS = (
    "plain",
    "plain",
    "compiled",
    "traced",
    "scripted",
    "frozen",
    "graph",
    "checkpoint",
    "re-entrant checkpoint",
)
THREATS = {
    "Linf 0.1/255": ThreatModel(0.1 / 255),
    "Linf 1/255": ThreatModel(1 / 255),
    "Linf 2/255": ThreatModel(2 / 255),
    "Linf 8/255": ThreatModel(8 / 255),
    "L2 0.25": ThreatModel(0.25, "L2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Honest:
    """How one honest model is made.

    Attributes:
        number: in the list; also the seed of everything random.
        network: key of `NETWORKS`, or one of `CHECKPOINTS`.
        training: ``random`` (weights as torch draws them), ``standard`` (60 steps of Adam on images that are not
            audited), ``adversarial`` (the same on images of a PGD of 3 steps), or ``checkpoint``.
        scale: factor of the logits.
        precision: key of `PRECISIONS`.
        wrapper: one of `WRAPPERS`.
        threat: key of `THREATS`.
    """

    number: int
    network: str
    training: str
    scale: float
    precision: str
    wrapper: str
    threat: str

    @property
    def name(self) -> str:
        """Unique, and in words."""
        parts = [getattr(self, each) for each in asdict(self) if each != "number"]
        return f"{self.number:03d} {', '.join(str(part) for part in parts)}"


def honest_models() -> list[Honest]:
    """The whole list. Each value of each property occurs about equally often."""
    networks = [*NETWORKS] * 3 + [*CHECKPOINTS]  # most are made here: a checkpoint is slow on a CPU
    columns = {
        "network": _spread(networks, "network"),
        "training": _spread(TRAININGS, "training"),
        "scale": _spread(SCALES, "scale"),
        "precision": _spread(["float32", *PRECISIONS], "precision"),
        "wrapper": _spread(WRAPPERS, "wrapper"),
        "threat": _spread([*THREATS], "threat"),
    }
    return [_valid(number, {name: values[number] for name, values in columns.items()}) for number in range(NUMBER)]


def _spread(values: object, name: str) -> list[object]:
    """The values, as often as needed, in random order."""
    listed = list(values)  # type: ignore[call-overload]
    repeated = [listed[index % len(listed)] for index in range(NUMBER)]
    order = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(sum(name.encode())))
    return [repeated[index] for index in order]


def _valid(number: int, values: dict[str, object]) -> Honest:
    if values["network"] in CHECKPOINTS:
        values["training"] = "checkpoint"
        if values["wrapper"] in ("scripted", "frozen", "graph"):  # not every checkpoint can be compiled or traced so
            values["wrapper"] = "traced"
        if values["precision"] != "float32":  # slow on a CPU
            values["precision"] = "float64" if str(values["network"]).startswith("resnet") else "float32"
    if values["network"] == "attention" and values["wrapper"] == "graph":
        values["wrapper"] = "plain"
    return Honest(number=number, **values)  # type: ignore[arg-type]


def build(honest: Honest, data: Dataset) -> nn.Module:
    """Make a model, in eval mode.

    Args:
        honest: which.
        data: images and labels to train on.
    """
    with random_state_kept(torch.device("cpu")):
        torch.manual_seed(honest.number)
        if honest.training == "checkpoint":
            model = load_model(honest.network)
        else:
            model = NETWORKS[honest.network]()
            if honest.training != "random":
                _train(model, data, adversarial=honest.training == "adversarial", seed=honest.number)
        model = nn.Sequential(model, _Scale(honest.scale)).to(PRECISIONS[honest.precision]).eval()
        model.requires_grad_(False)
        return _wrapped(model, honest.wrapper, data.images[:8].to(PRECISIONS[honest.precision]))


def _wrapped(model: nn.Module, wrapper: str, images: Tensor) -> nn.Module:
    wrap: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: model,
        "compiled": lambda: cast(nn.Module, torch.compile(model, backend="eager", dynamic=True)),
        "traced": lambda: torch.jit.trace(model, images, check_trace=False),
        "scripted": lambda: torch.jit.script(model),
        "frozen": lambda: torch.jit.freeze(torch.jit.script(model)),
        "graph": lambda: torch.fx.symbolic_trace(model),
        "checkpoint": lambda: Checkpointed(model, reentrant=False),
        "re-entrant checkpoint": lambda: Checkpointed(model, reentrant=True),
    }
    return wrap[wrapper]().eval() if wrapper.endswith("checkpoint") else wrap[wrapper]()


def _train(model: nn.Module, data: Dataset, *, adversarial: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    for _ in range(_STEPS):
        batch = torch.randint(len(data.images), (_BATCH,), generator=generator)
        images, labels = data.images[batch], data.labels[batch]
        if adversarial:
            model.eval()
            images = pgd(model, images, labels, threat=ThreatModel(4 / 255), steps=3, generator=generator)
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def _convolution(inputs: int, outputs: int, *, stride: int = 2, norm: bool = False) -> list[nn.Module]:
    middle = [nn.BatchNorm2d(outputs)] if norm else []
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), *middle, nn.ReLU()]


def _classifier(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * features, CLASSES)]


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        return features + self.inside(features)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Patches of 8 x 8 pixels, one layer of attention, and the mean of all tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.layer(tokens).mean(1))  # type: ignore[no-any-return]
