"""JPEG compression as a defense, with and without a gradient."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.fft import dct
from torch import Tensor, nn

from audits.defenses.entry import Entry, behind, story
from audits.defenses.references import ITSELF, attack_views, bypass
from pytest_gradmask import InputError

# Annex K of ITU-T T.81, for quality 50.
_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]  # fmt: skip
_CHROMINANCE = [
    [17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99],
]  # fmt: skip
# JFIF: from RGB to luminance and two chrominances around zero.
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]


def cosine_basis(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix, size x size: rows are frequencies."""
    return torch.from_numpy(dct(np.eye(size), axis=0, norm="ortho")).float()


def quantization_tables(quality: int) -> Tensor:
    """Steps of each coefficient for luminance and both chrominances, 3 x 8 x 8, in 255ths; as libjpeg scales them.

    Args:
        quality: 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"quality={quality!r}: must be from 1 to 100, such as 75")
    chrominance = torch.full((8, 8), 99.0)
    chrominance[:4, :4] = torch.tensor(_CHROMINANCE, dtype=torch.float32)
    tables = torch.stack([torch.tensor(_LUMINANCE, dtype=torch.float32), chrominance, chrominance])
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((tables * scale + 50) / 100).floor().clamp(1, 255)


class Jpeg(nn.Module):
    """JPEG compression by libjpeg, on integers outside of the autograd graph.

    Proposed by Dziugaite, Ghahramani and Roy (2016, arXiv:1608.00853) and Das et al. (2017, arXiv:1705.02900), and as
    one of several input transformations by Guo et al. (ICLR 2018, arXiv:1711.00117). Broken by Shin and Song (2017)
    with a differentiable JPEG, and by Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) by BPDA with the
    identity.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.detach() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = torch.from_numpy(np.stack([self._recoded(image) for image in pixels])).permute(0, 3, 1, 2)
        return decoded.to(images) / 255

    def _recoded(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
            return np.asarray(Image.open(file))


class SmoothJpeg(nn.Module):
    """JPEG with a cubic function instead of rounding, and without subsampling of colours.

    Shin and Song ("JPEG-resistant adversarial images", 2017) wrote it to attack JPEG. Rounding becomes
    ``round(x) + (x - round(x)) ** 3``, which is flat near whole numbers and steep between them. Used as a defense, it
    has a gradient everywhere, and the question is whether this gradient is useful. The BPDA approximation is the
    identity for the whole front end.

    Args:
        quality: 1 to 100. Height and width of the images must be multiples of 8.
    """

    steps: Tensor
    basis: Tensor
    colours: Tensor
    back: Tensor
    grey: Tensor

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        colours = torch.tensor(_TO_YCC)
        self.register_buffer("steps", quantization_tables(quality)[:, None, None] / 255, persistent=False)
        self.register_buffer("basis", cosine_basis(8), persistent=False)
        self.register_buffer("colours", colours, persistent=False)
        self.register_buffer("back", torch.linalg.inv(colours), persistent=False)
        # Luminance is shifted to be centred at zero, as the chrominances already are.
        self.register_buffer("grey", torch.tensor([128 / 255, 0, 0]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        if height % 8 or width % 8 or channels != 3:
            raise InputError(f"images: shape is {tuple(images.shape)}; JPEG needs 3 channels and multiples of 8 pixels")
        shifted = torch.einsum("ij,njhw->nihw", self.colours, images) - self.grey
        blocks = shifted.reshape(count, 3, height // 8, 8, width // 8, 8).transpose(3, 4)
        scaled = self.basis @ blocks @ self.basis.T / self.steps
        whole = scaled.detach().round()
        rounded = whole + (scaled - whole) ** 3
        blocks = self.basis.T @ (rounded * self.steps) @ self.basis
        shifted = blocks.transpose(3, 4).reshape(count, 3, height, width) + self.grey
        return torch.einsum("ij,njhw->nihw", self.back, shifted).clamp(0, 1)


def _differentiable(module: Jpeg, images: Tensor) -> Tensor:
    return SmoothJpeg(module.quality).to(images.device)(images)  # type: ignore[no-any-return]


ENTRIES = (
    Entry(
        name="jpeg",
        backbone="vgg-standard",
        build=behind(Jpeg, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(Jpeg), bypass(Jpeg, _differentiable)]),
        story=story(Jpeg),
        suspicious=True,
    ),
    Entry(
        name="jpeg-differentiable",
        backbone="resnet-standard",
        build=behind(SmoothJpeg, "resnet-standard"),
        reference=partial(attack_views, views=[bypass(SmoothJpeg), ITSELF]),
        story=story(SmoothJpeg),
        suspicious=True,
    ),
)
