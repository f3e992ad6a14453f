"""Honest models of many architectures, activations, normalisations and precisions.

Those of the package are trained. All others have random weights and batch statistics of the images; what they call an
image is its label. Nothing in any of them hides a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pytest_gradmask import load_model

_TRAINED = (
    "resnet-standard", "resnet-adversarial", "vgg-standard", "vgg-adversarial", "vgg-mildly-adversarial",
    "vit-standard", "vit-adversarial",
)  # fmt: skip
_TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1",
    "shufflenet_v2_x1_0", "mnasnet1_0", "regnet_y_400mf", "convnext_tiny", "googlenet", "vgg11_bn",
)  # fmt: skip
_ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus, "elu": nn.ELU,
    "tanh": nn.Tanh, "hardswish": nn.Hardswish, "relu6": nn.ReLU6, "mish": nn.Mish,
}  # fmt: skip


class Checkpointed(nn.Module):
    """Computes its inner activations again on the way back."""

    def __init__(self, model: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.model, images, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


class Rows(nn.Module):
    """An LSTM or GRU that reads an image row by row."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = cell(96, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        read, _ = self.cell(images.permute(0, 2, 1, 3).flatten(2))
        return self.head(read.mean(1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Torch's transformer encoder over patches of 4 x 4 pixels."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, stride=4)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """Multiplies the logits."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)  # type: ignore[no-any-return]


class Casting(nn.Module):
    """Asks for float32 wherever it can, as code does that was written for mixed precision."""

    mean: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, images: Tensor) -> Tensor:
        centred = images.float().to(torch.float32) - torch.tensor(0.5, dtype=torch.float32).type_as(self.mean)
        return self.model(centred).float()  # type: ignore[no-any-return]


class Autocast(nn.Module):
    """Computes in bfloat16 by autocast."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(images)  # type: ignore[no-any-return]


def convolutional(
    activation: Callable[[], nn.Module] = nn.ReLU, norm: str = "batch", pool: str = "max"
) -> nn.Sequential:
    """Three convolutions with an activation, a normalisation and a pooling."""
    norms: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d, "group": partial(nn.GroupNorm, 4), "instance": nn.InstanceNorm2d,
        "none": lambda channels: nn.Identity(),
    }  # fmt: skip
    pools = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2), "none": nn.Identity()}
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), norms[norm](after), activation(), pools[pool]]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))


def _parametrized(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = convolutional()
    for module in list(model):
        if isinstance(module, nn.Conv2d | nn.Linear):
            wrap(module)
    return model


def _torchvision(name: str) -> nn.Module:
    import torchvision

    extra: dict[str, bool] = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model: nn.Module = torchvision.models.get_model(name, num_classes=10, **extra)
    return model


def _vit() -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.VisionTransformer(32, 8, 6, 6, 192, 768, num_classes=10)
    nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.1)
    return model


def _with_statistics(build: Callable[[], nn.Module], images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def honest_models(images: Tensor, *, large: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Name and model, in eval mode and without gradients of parameters.

    Args:
        images: N x 3 x 32 x 32, for the statistics of batch norm.
        large: torchvision's models, too.
    """
    builds: dict[str, Callable[[], nn.Module]] = {
        **{f"conv-{name}": partial(convolutional, each) for name, each in _ACTIVATIONS.items()},
        **{f"conv-{norm}-norm": partial(convolutional, nn.GELU, norm) for norm in ("group", "instance", "none")},
        "conv-average-pool": partial(convolutional, nn.ReLU, "batch", "average"),
        "conv-max-pool-first": lambda: nn.Sequential(nn.MaxPool2d(2), convolutional()),
        "weight-norm": partial(_parametrized, parametrizations.weight_norm),
        "spectral-norm": partial(_parametrized, parametrizations.spectral_norm),
        "orthogonal": partial(_parametrized, parametrizations.orthogonal),
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)),
        "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 10)),
        "lstm": partial(Rows, nn.LSTM),
        "gru": partial(Rows, nn.GRU),
        "attention": Attention,
        "attention-norm-first": partial(Attention, norm_first=True),
        "casting": lambda: Casting(convolutional()),
        "autocast": lambda: Autocast(convolutional()),
    }
    for name in _TRAINED:
        yield name, load_model(name).requires_grad_(False)
    if large:
        builds |= {f"torchvision-{name}": partial(_torchvision, name) for name in _TORCHVISION}
        builds["torchvision-vit"] = _vit
    for name, build in builds.items():
        yield name, _with_statistics(build, images).requires_grad_(False)
    for name in ("vgg-standard", "vit-adversarial"):
        for factor in (1e-3, 1e3):
            yield f"{name} times {factor:g}", Scaled(load_model(name), factor).eval().requires_grad_(False)
        yield f"{name} in float64", load_model(name).double().requires_grad_(False)
        yield f"{name} in bfloat16", load_model(name).bfloat16().requires_grad_(False)
        yield f"{name} casting", Casting(load_model(name)).eval().requires_grad_(False)
        for reentrant in (True, False):
            kind = "re-entrant checkpoint" if reentrant else "checkpoint"
            model = Checkpointed(load_model(name), reentrant=reentrant)
            yield f"{name} behind a {kind}", model.eval().requires_grad_(False)
        probabilities = nn.Sequential(load_model(name), nn.Softmax(1)).eval()
        yield f"{name} with probabilities", probabilities.requires_grad_(False)
