"""Training images: order, crop, flip and erasure, all from the seed and the number of the step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_PADDING = 4


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step. Nothing else is remembered from step to step, so a resumed run draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of ``count`` images step ``step`` takes: each epoch has an order of its own, its last images are left."""
    epoch, position = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
    return order[position * batch_size : (position + 1) * batch_size]


def augmented(images: Tensor, generator: torch.Generator, *, erase: bool = False) -> Tensor:
    """Crops of the images with 4 black pixels around them, half of them mirrored.

    Args:
        images: N x C x H x W.
        erase: blacken a rectangle of 10 to 25 % of each, with sides at most 2 to 1.
    """
    count, _, height, width = images.shape
    wide = pad(images, [_PADDING] * 4)
    rows = torch.randint(2 * _PADDING + 1, (count, 2), generator=generator).tolist()
    cropped = torch.stack([wide[n, :, y : y + height, x : x + width] for n, (y, x) in enumerate(rows)])
    mirrored = torch.rand(count, generator=generator) < 0.5
    result = torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)
    if erase:
        for image in result:
            _blacken(image, generator)
    return result


def _blacken(image: Tensor, generator: torch.Generator) -> None:
    _, height, width = image.shape
    share, ratio, down, right = torch.rand(4, generator=generator).tolist()
    area = (0.1 + 0.15 * share) * height * width
    ratio = 0.5 * 4.0**ratio
    rows, columns = min(round((area * ratio) ** 0.5), height), min(round((area / ratio) ** 0.5), width)
    top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
    image[:, top : top + rows, left : left + columns] = 0.0
