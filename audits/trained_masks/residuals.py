"""Residuals of front ends: the paper's DnCNN, and others that ask whether any front end near the identity masks.

Each builder takes the convolutions along the longest path, the channels between them, and a maker of batch norms. It
returns the network, and its last convolutions: with these at zero, the network's output is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pixel_shuffle, pixel_unshuffle

Norm = Callable[[int], nn.BatchNorm2d]


def dncnn(depth: int, width: int, norm: Norm) -> tuple[nn.Module, list[nn.Conv2d]]:
    """One convolution after the other (Zhang et al. 2017); the first and the last have no batch norm."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(depth - 2):
        layers += _block(width, width, norm)
    last = nn.Conv2d(width, 3, 3, padding=1, bias=False)
    return nn.Sequential(*layers, last), [last]


def unet(depth: int, width: int, norm: Norm) -> tuple[nn.Module, list[nn.Conv2d]]:
    """A small U-Net (Ronneberger et al. 2015) with three resolutions; ``depth`` is a multiple of 5, at least 10."""
    network = UNet(depth // 5, width, norm)
    return network, [network.readout]


def invertible(depth: int, width: int, norm: Norm) -> tuple[nn.Module, list[nn.Conv2d]]:
    """What additive couplings (Dinh et al. 2015, NICE) take from an image; three convolutions in each."""
    network = Couplings(depth // 3, width, norm)
    return network, network.readouts()


class UNet(nn.Module):
    """Blocks at full, half and quarter resolution, and back up; each resolution is handed over.

    Args:
        blocks: at each of the five stages, the readout included.
        width: channels.
        norm: makes a batch norm.
    """

    def __init__(self, blocks: int, width: int, norm: Norm) -> None:
        super().__init__()

        def stage(inputs: int, count: int) -> nn.Sequential:
            sizes = [inputs, *[width] * count]
            return nn.Sequential(*(layer for pair in pairwise(sizes) for layer in _block(*pair, norm)))

        self.fine = stage(3, blocks)
        self.middle = stage(width, blocks)
        self.coarse = stage(width, blocks)
        self.middle_again = stage(2 * width, blocks)
        self.fine_again = stage(2 * width, blocks - 1)
        self.readout = nn.Conv2d(width, 3, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        middle = self.middle(avg_pool2d(fine, 2))
        coarse = self.coarse(avg_pool2d(middle, 2))
        middle = self.middle_again(torch.cat([middle, _doubled(coarse)], 1))
        residual: Tensor = self.readout(self.fine_again(torch.cat([fine, _doubled(middle)], 1)))
        return residual


class Couplings(nn.Module):
    """An image minus what additive couplings make of it. They act on its 2 x 2 squares as channels, half by half.

    Args:
        count: couplings.
        width: channels within each.
        norm: makes a batch norm.
    """

    def __init__(self, count: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            nn.Sequential(*_block(6, width, norm), *_block(width, width, norm), nn.Conv2d(width, 6, 3, padding=1))
            for _ in range(count)
        )

    def readouts(self) -> list[nn.Conv2d]:
        """The last convolution of each coupling."""
        return [layer for layer in self.couplings.modules() if isinstance(layer, nn.Conv2d)][2::3]

    def forward(self, images: Tensor) -> Tensor:
        halves = list(pixel_unshuffle(images, 2).chunk(2, 1))
        for number, coupling in enumerate(self.couplings):
            halves[number % 2] = halves[number % 2] + coupling(halves[1 - number % 2])
        return images - pixel_shuffle(torch.cat(halves, 1), 2)

    def inverse(self, outputs: Tensor) -> Tensor:
        """The image that the couplings turn into ``outputs``, with batch norm in eval mode."""
        halves = list(pixel_unshuffle(outputs, 2).chunk(2, 1))
        for number, coupling in reversed(list(enumerate(self.couplings))):
            halves[number % 2] = halves[number % 2] - coupling(halves[1 - number % 2])
        return pixel_shuffle(torch.cat(halves, 1), 2)


def _block(inputs: int, outputs: int, norm: Norm) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU(inplace=True)]


def _doubled(images: Tensor) -> Tensor:
    return interpolate(images, scale_factor=2, mode="nearest")


#: By the name that recipes use.
ARCHITECTURES: dict[str, Callable[[int, int, Norm], tuple[nn.Module, list[nn.Conv2d]]]] = {
    "dncnn": dncnn,
    "unet": unet,
    "invertible": invertible,
}
