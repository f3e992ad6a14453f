"""Small classifiers for CIFAR images from the classes of timm, with the input normalisation inside the model.

Attacks work on pixels in [0, 1], so the model itself normalises its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_gradmask.errors import InputError

#: Channel means and standard deviations of the CIFAR-10 training images, in [0, 1] units.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """Subtract ``mean`` and divide by ``std``, channel by channel (images N x C x H x W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _normalized(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    return nn.Sequential(Normalize(mean, std), network)


def resnet(
    layers: Sequence[int] = (1, 1, 1, 1),
    channels: Sequence[int] = (32, 64, 128, 192),
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> nn.Sequential:
    """Timm's ResNet (He et al. 2016, arXiv:1512.03385) for 32 x 32 images: a 3 x 3 stem of stride 1, no pooling."""
    from timm.models.resnet import BasicBlock, ResNet

    network = ResNet(
        BasicBlock, list(layers), num_classes=num_classes, channels=tuple(channels), stem_width=channels[0]
    )
    # The ImageNet stem divides the image size by four, which is too much for 32 x 32 images.
    network.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(channels[0])
    network.maxpool = nn.Identity()
    if channels[0] != 64:  # timm builds the first block for a stem of 64 channels
        network.layer1[0].conv1 = nn.Conv2d(channels[0], channels[0], 3, padding=1, bias=False)
        network.layer1[0].downsample = None
    return _normalized(network, mean, std)


def vgg(
    layout: Sequence[int | str] = (32, "M", 64, 64, "M", 128, 128, "M", 192, 192),
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> nn.Sequential:
    """Timm's VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) with batch norm and without its large hidden layers.

    Args:
        layout: output channels of each 3 x 3 convolution; ``"M"`` is a max pooling that halves the image size.
    """
    from timm.layers import ClassifierHead
    from timm.models.vgg import VGG

    network = VGG(list(layout), num_classes=num_classes, norm_layer=nn.BatchNorm2d, mlp_ratio=1 / 4096)
    # Remove the 7 x 7 convolution to 4096 channels, which is for ImageNet (mlp_ratio keeps it small until then).
    network.pre_logits = nn.Identity()
    network.head = ClassifierHead(network.num_features, num_classes)
    return _normalized(network, mean, std)


def vit(
    embed_dim: int = 96,
    depth: int = 6,
    num_heads: int = 3,
    mlp_ratio: float = 2.0,
    image_size: int = 32,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> nn.Sequential:
    """Timm's vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) with a small convolutional stem.

    The stem makes 8 x 8 tokens of a 32 x 32 image. It is that of Xiao et al. 2021, "Early convolutions help
    transformers see better" (arXiv:2106.14881): without it a transformer learns little from 50,000 images. Tokens are
    averaged before the classifier.

    Args:
        embed_dim: dimension of a token; at least 4 and a multiple of ``num_heads``.
        image_size: height and width of the images, a multiple of 4.

    Raises:
        InputError: ``embed_dim``, ``num_heads`` or ``image_size`` is out of range.
    """
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    if num_heads < 1 or embed_dim < 4 or embed_dim % num_heads or image_size < 4 or image_size % 4:
        raise InputError(
            f"embed_dim={embed_dim}, num_heads={num_heads}, image_size={image_size}: embed_dim must be at least 4 and "
            "a multiple of num_heads, and image_size a multiple of 4"
        )
    layers: list[nn.Module] = []
    widths = (3, embed_dim // 4, embed_dim // 2, embed_dim)
    for before, after, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    def embed(img_size: int, embed_dim: int, **_: object) -> nn.Module:
        stem = nn.Sequential(*layers)
        stem.num_features = embed_dim  # type: ignore[assignment]  # timm asks for it
        return HybridEmbed(stem, img_size, feature_size=image_size // 4, embed_dim=embed_dim)  # type: ignore[no-any-return]

    network = VisionTransformer(
        img_size=image_size,
        num_classes=num_classes,
        global_pool="avg",
        class_token=False,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        embed_layer=embed,
    )
    return _normalized(network, mean, std)
