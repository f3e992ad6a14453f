"""Random front ends (resizing and padding, noise, purification) and the paper's randomized ensemble."""

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
    """Random resizing, then random padding with zeros. Each batch has new random numbers.

    Proposed by Xie et al. ("Mitigating adversarial effects through randomization", ICLR 2018, arXiv:1711.01991), who
    enlarge by up to a tenth. Broken by Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) by EOT: the gradient
    for one draw is exact, and the mean gradient of several draws leads to images that fool most draws. Images must be
    square.
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

    Liu et al. ("Towards robust neural networks via random self-ensemble", ECCV 2018, arXiv:1712.00673) and He, Rakin
    and Fan ("Parametric noise injection", CVPR 2019, arXiv:1811.09310) use noise layers as a defense. Pintor et al.
    (NeurIPS 2022, arXiv:2106.09947) and others find that the reported robustness was measured by gradient attacks
    without EOT.
    """

    def __init__(self, std: float = 0.03) -> None:
        super().__init__()
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        return images + self.std * torch.randn_like(images)


class Purification(nn.Module):
    """Adds noise and removes it again, a few times.

    Proposed as purification by a generative model by Yoon, Hwang and Lee ("Adversarial purification with score-based
    generative models", ICML 2021, arXiv:2106.06041) and Nie et al. ("Diffusion models for adversarial purification",
    ICML 2022, arXiv:2205.07460). A graph over all passes through the denoiser needs too much memory, and the reported
    robustness was measured with approximate gradients. Lee and Kim ("Robust evaluation of diffusion-based adversarial
    purification", ICCV 2023, arXiv:2303.09051) and Chen et al. ("Robust classification via a single diffusion model",
    2024, arXiv:2305.15241) break it with surrogate gradients and EOT.

    The denoiser here is small and needs no training. It applies a cosine transform to every window of the image and
    sets small coefficients to zero (Yu and Sapiro 2011, "DCT image denoising"). As in the originals, its computation is
    not in the autograd graph.

    Args:
        std: standard deviation of the noise, in input units.
        passes: number of passes of noise and denoiser.
        size: side of the transform's windows, in pixels.
        threshold: coefficients below this many standard deviations of the noise are set to zero.
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
        """One pass of the denoiser. Each pixel is the mean over all windows that contain it."""
        size = self.filters.shape[-1]
        padded = pad(images, [size - 1] * 4, mode="reflect").flatten(0, 1)[:, None]
        coefficients = conv2d(padded, self.filters)
        large = coefficients.abs() > self.threshold * self.std
        large[:, 0] = True  # the mean of a window
        cleaned = conv_transpose2d(coefficients * large, self.filters) / size**2
        inner = slice(size - 1, 1 - size)
        return cleaned[..., inner, inner].view_as(images)


def ensemble(load: Loader) -> RandomizedEnsemble:
    """A randomized ensemble of composites. One of them computes each forward pass.

    The construction of Boytsov, Joshi and Condessa (arXiv:2402.17018, TMLR 2025). Their ensemble has an accuracy of
    90.8 % under full AutoAttack and of 18.2 % under their adaptive attack. Their front ends are trained. Here, each of
    two backbones has a `Ripple` of another frequency as its front end, so that the gradient of one member is useless
    for both members. The attack differentiates the mixture of the members with every front end bypassed.
    `docs/reproduction.md` has the ensemble with trained front ends.
    """
    members = [Composite(Ripple(), load("vgg-standard")), Composite(Ripple(frequency=2500), load("vgg-adversarial"))]
    return RandomizedEnsemble(members).eval()


def _mixture(model: nn.Module) -> nn.Module:
    assert isinstance(model, RandomizedEnsemble)
    return bypass(Ripple).of(Mixture(list(model.members)))


ENTRIES = (
    Entry(
        name="resize-and-pad",
        backbone="vgg-standard",
        build=behind(ResizeAndPad, "vgg-standard"),
        reference=partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20),
        story=story(ResizeAndPad),
        suspicious=True,
        randomized=True,
    ),
    Entry(
        name="noise",
        backbone="vgg-adversarial",
        build=behind(Noise, "vgg-adversarial"),
        reference=partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20),
        story=story(Noise),
        suspicious=True,
        randomized=True,
    ),
    Entry(
        name="purification",
        backbone="vgg-standard",
        build=behind(Purification, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(Purification)], steps=50, eot=10, samples=20),
        story=story(Purification),
        suspicious=True,
        randomized=True,
    ),
    Entry(
        name="randomized-ensemble",
        backbone="vgg-standard",
        build=ensemble,
        reference=partial(attack_views, views=[View(_mixture)], samples=20),
        story=story(ensemble),
        suspicious=True,
        randomized=True,
    ),
)
