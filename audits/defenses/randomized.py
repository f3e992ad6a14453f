"""Random front ends: resizing and padding, noise, purification; and the paper's randomized ensemble."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, pad

from audits.defenses.entry import Entry, Loader, behind, story
from audits.defenses.jpeg import cosine_basis
from audits.defenses.references import ITSELF, View, attack_views, bypass
from audits.defenses.rough import Ripple
from pytest_gradmask import Composite, Mixture, RandomizedEnsemble


class ResizeAndPad(nn.Module):
    """Random resizing, then random padding with zeros; drawn anew for each batch.

    Proposed by Xie et al. ("Mitigating adversarial effects through randomization", ICLR 2018), who enlarge by up to a
    tenth. Broken by Athalye, Carlini and Wagner (ICML 2018) by EOT: the gradient of one draw is exact,
    and the mean of some draws leads to what fools most of them. Images must be square.
    """

    def __init__(self, growth: float = 1.125) -> None:
        super().__init__()
        self.growth = growth

    def forward(self, images: Tensor) -> Tensor:
        largest = round(self.growth * images.shape[2])
        size = int(torch.randint(images.shape[2], largest + 1, ()))
        top, left = (int(torch.randint(largest - size + 1, ())) for _ in range(2))
        resized = interpolate(images, size=(size, size), mode="nearest")
        return pad(resized, [left, largest - size - left, top, largest - size - top])


class Noise(nn.Module):
    """Normal noise on the image, at inference only.

    Noise layers as a defense are those of Liu et al. ("Towards robust neural networks via random self-ensemble", ECCV
    2018) and He, Rakin and Fan ("Parametric noise injection", CVPR 2019). Pintor et al. (NeurIPS 2022) and others find
    that their robustness was that of a gradient attack without EOT.
    """

    def __init__(self, std: float = 0.03) -> None:
        super().__init__()
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        return images + self.std * torch.randn_like(images)


class Purification(nn.Module):
    """Adds noise and takes it away again, a few times.

    Purification by a generative model: Yoon, Hwang and Lee ("Adversarial purification with score-based generative
    models", ICML 2021), Nie et al. ("Diffusion models for adversarial purification", ICML 2022). The passes through the
    denoiser are too many to keep a graph for, and reported robustness rested on approximate gradients: Lee and Kim
    ("Robust evaluation of diffusion-based adversarial purification", ICCV 2023) and Chen et al. ("Robust classification
    via a single diffusion model", 2024) break it with surrogate gradients and EOT.

    The denoiser here is small and needs no training: small coefficients of a cosine transform at every place are set
    to nought (Yu and Sapiro 2011, "DCT image denoising"). As in the originals, what it computes keeps no graph.

    Args:
        std: of the noise, in input units.
        passes: of noise and denoiser.
        size: side of the transform's windows, in pixels.
        threshold: below how many standard deviations of the noise a coefficient is dropped.
    """

    filters: Tensor

    def __init__(self, std: float = 0.03, passes: int = 3, size: int = 4, threshold: float = 2.0) -> None:
        super().__init__()
        self.std, self.passes, self.threshold = std, passes, threshold
        basis = cosine_basis(size)
        filters = torch.einsum("ij,kl->ikjl", basis, basis).reshape(-1, 1, size, size)
        self.register_buffer("filters", filters, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.passes):
            images = self.denoised(images + self.std * torch.randn_like(images))
        return images

    def denoised(self, images: Tensor) -> Tensor:
        """One pass of the denoiser: the mean over all windows that hold a pixel."""
        size = self.filters.shape[-1]
        padded = pad(images, [size - 1] * 4, mode="reflect").flatten(0, 1)[:, None]
        coefficients = conv2d(padded, self.filters)
        kept = coefficients.abs() > self.threshold * self.std
        kept[:, 0] = True  # the mean of a window
        cleaned = conv_transpose2d(coefficients * kept, self.filters) / size**2
        inner = slice(size - 1, 1 - size)
        return cleaned[..., inner, inner].view_as(images)


def ensemble(load: Loader) -> RandomizedEnsemble:
    """A randomized ensemble of composites: each forward pass is answered by one of them.

    The construction of Boytsov, Joshi and Condessa (arXiv:2402.17018, TMLR 2025), of which full AutoAttack leaves
    90.8 % standing and their own adaptive attack 18.2 %. Their front ends are trained; here ripples stand in for
    them, one of a frequency of its own before each of two backbones, so that the gradient of one member says nothing
    of it nor of the other. It is attacked through the mixture of its members with every front end bypassed.
    `docs/reproduction.md` has the ensemble with trained front ends.
    """
    members = [Composite(Ripple(), load("vgg-standard")), Composite(Ripple(frequency=2500), load("vgg-adversarial"))]
    return RandomizedEnsemble(members).eval()


def _mixture(model: nn.Module) -> nn.Module:
    assert isinstance(model, RandomizedEnsemble)
    return bypass(Ripple).of(Mixture(list(model.members)))


ENTRIES = (
    Entry(
        "resize-and-pad", "vgg-standard", behind(ResizeAndPad, "vgg-standard"),
        partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20),
        story(ResizeAndPad), suspicious=True, randomized=True,
    ),
    Entry(
        "noise", "vgg-adversarial", behind(Noise, "vgg-adversarial"),
        partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20), story(Noise), suspicious=True,
        randomized=True,
    ),
    Entry(
        "purification", "vgg-standard", behind(Purification, "vgg-standard"),
        partial(attack_views, views=[bypass(Purification)], steps=50, eot=10, samples=20), story(Purification),
        suspicious=True, randomized=True,
    ),
    Entry(
        "randomized-ensemble", "vgg-standard", ensemble,
        partial(attack_views, views=[View(_mixture)], samples=20), story(ensemble), suspicious=True, randomized=True,
    ),
)  # fmt: skip
