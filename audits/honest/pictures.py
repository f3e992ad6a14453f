"""Images to train and audit honest models on: ten smooth random patterns, each with its own noise."""

from __future__ import annotations

import torch
from torch import nn

from pytest_gradmask import Dataset

CLASSES, _SIZE = 10, 32
#: Standard deviation of the noise that changes smoothly, and of that of each pixel.
_SMOOTH, _PIXEL = 0.15, 0.05


def pictures(number: int, seed: int) -> Dataset:
    """So many images with labels; the patterns are the same for every seed."""
    patterns = _smooth(torch.Generator().manual_seed(0), CLASSES, 4)
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    images = 0.5 + 0.15 * patterns[labels] + _SMOOTH * _smooth(generator, number, 8)
    images += _PIXEL * torch.randn(images.shape, generator=generator)
    # On the grid of 8-bit images, as stored images are.
    return Dataset((images.clamp(0, 1) * 255).round() / 255, labels, "patterns")


def _smooth(generator: torch.Generator, number: int, size: int) -> torch.Tensor:
    small = torch.randn(number, 3, size, size, generator=generator)
    return nn.functional.interpolate(small, size=(_SIZE, _SIZE), mode="bicubic")
