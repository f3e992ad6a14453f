"""Honest models: the fixtures, CIFAR-10 ResNets of He et al. (2016), and torchvision's networks with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from pytest_gradmask import load_model

FIXTURES = (
    "resnet-standard",
    "resnet-adversarial",
    "vgg-standard",
    "vgg-adversarial",
    "vgg-mildly-adversarial",
    "vit-standard",
    "vit-adversarial",
)
RANDOM = ("resnet18", "vgg11_bn", "mobilenet_v3_small", "shufflenet_v2_x0_5")
CIFAR = ("cifar10-resnet20", "cifar10-resnet32", "cifar10-resnet44", "cifar10-resnet56")


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.more:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        total: Tensor = x + y
        return total.relu()


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. (2016, arXiv:1512.03385) with 6n + 2 layers and option-A shortcuts."""

    mean: Tensor
    std: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(before, after, stride), *(_Block(after, after, 1) for _ in range(n - 1)))
            for before, after, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1((images - self.mean) / self.std)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))  # type: ignore[no-any-return]


def build(name: str, weights: Path | None) -> nn.Module:
    """A model in eval mode.

    Args:
        name: of a fixture, of a torchvision network, or ``cifar10-resnetN``.
        weights: the folder of the weights of ``cifar10-resnetN``.
    """
    if name in FIXTURES:
        return load_model(name)
    if name in CIFAR:
        assert weights is not None, f"{name} needs --weights"
        model = CifarResNet((int(name.removeprefix("cifar10-resnet")) - 2) // 6)
        state = load_file(weights / f"{name}.safetensors")
        model.load_state_dict({key.replace("fc.", "linear."): value for key, value in state.items()})
        return model.eval()
    return _random(name)


@torch.no_grad()
def _random(name: str) -> nn.Module:
    """A torchvision network with random weights, whose batch norms have seen smooth random images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
        for _ in range(40):
            model(torch.rand(32, 3, 32, 32) / 2 + torch.rand(32, 3, 1, 1) / 2)
    return model.eval()


def middle(model: nn.Module) -> nn.Module:
    """A submodule after about a third of the network, for a fault in the backward pass."""
    for name in ("layer1", "blocks.1"):
        try:
            return model.get_submodule(name)
        except AttributeError:
            continue
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if len(layers) > 2:
        return layers[len(layers) // 3]
    found: nn.Module = next(
        module for name, module in model.named_modules() if name.endswith(".1") and len(list(module.children()))
    )
    return found
