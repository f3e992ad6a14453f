"""Front ends whose gradient is zero: computed outside the autograd graph, rounded, or cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from audits.defenses.entry import Entry, Loader, behind, story
from audits.defenses.references import attack_views, bypass, multi_targeted
from pytest_gradmask import Composite


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


class GradientKiller(nn.Module):
    """The identity, with a backward pass that returns zeros.

    It was never published as a defense. It is the simplest form of masking, which Papernot et al. ("Practical black-box
    attacks against machine learning", 2017, arXiv:1602.02697) named, and every detector must find it. BPDA with the
    identity (Athalye, Carlini and Wagner 2018, arXiv:1802.00420) breaks it.
    """

    def forward(self, images: Tensor) -> Tensor:
        return _NoGradient.apply(images)  # type: ignore[no-any-return]


class Detached(nn.Module):
    """A mild smoothing outside of the autograd graph, as in a preprocessing step written with NumPy.

    Defenses by input transformations are often written like this, so that their gradient is missing by accident.
    Carlini et al. ("On evaluating adversarial robustness", 2019, arXiv:1902.06705) recommend to attack the whole
    pipeline. The attack differentiates the same smoothing inside the graph.
    """

    def smooth(self, images: Tensor) -> Tensor:
        """Nine tenths of the image plus a tenth of its mean over 3 x 3 pixels."""
        return torch.lerp(images, avg_pool2d(pad(images, [1] * 4, mode="replicate"), 3, 1), 0.1)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.smooth(images)


class Quantization(nn.Module):
    """Rounds pixels to ``2 ** bits`` levels.

    Bit depth reduction is one of the feature squeezers of Xu, Evans and Qi (NDSS 2018, arXiv:1704.01155) and one of the
    input transformations of Guo et al. (ICLR 2018, arXiv:1711.00117). Its gradient is zero almost everywhere. He et al.
    (WOOT 2017, arXiv:1706.04701) break feature squeezing. Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420)
    break the defense of Guo et al. by BPDA with the identity.
    """

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        self.levels: int = 2**bits - 1

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels


class Thermometer(nn.Module):
    """Thermometer encoding: each pixel becomes ``levels`` bits. Bit j says whether the pixel is above j / levels.

    Buckman et al. (ICLR 2018) train a classifier on such codes. The encoding has no gradient, and they attack it with
    their own discrete relaxation. Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) break it by BPDA with the
    soft code ``clip(levels * x - j, 0, 1)``. Its accuracy is then below that of plain adversarial training.

    Here, the classifier of codes is constructed and not trained. Its first layer is `decoder`, a linear layer with
    fixed weights that converts a code back into a pixel. Its other layers are those of the trained backbone. Only the
    resolution of the pixels is reduced. The encoder changes the shape of the images, so that a search for near-identity
    front ends does not find it, and BPDA needs a fitted approximation.

    Maps N x C x H x W to N x (C * levels) x H x W.
    """

    thresholds: Tensor

    def __init__(self, levels: int = 16) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.arange(levels).view(1, 1, -1, 1, 1) / levels, persistent=False)
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        return (images[:, :, None] > self.thresholds).to(images.dtype).flatten(1, 2)

    def soft(self, images: Tensor) -> Tensor:
        """The differentiable code of Athalye et al. It decodes to the image itself plus a constant."""
        return (self.levels * (images[:, :, None] - self.thresholds)).clamp(0, 1).flatten(1, 2)


def decoder(levels: int = 16, channels: int = 3) -> nn.Conv2d:
    """A fixed 1 x 1 convolution from thermometer codes to the middle of the interval that each code represents."""
    layer = nn.Conv2d(channels * levels, channels, 1, groups=channels)
    nn.init.constant_(layer.weight, 1 / levels)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -0.5 / levels)
    return layer


class DeadZone(nn.Module):
    """Rounds images of low contrast to 3 bits and leaves all others as they are.

    A construction that resembles input-dependent defenses, which are hard to evaluate. The gradient is exactly zero in
    one region of the input space and correct elsewhere, so that a check of a few images may miss it. No small
    perturbation leaves the region. BPDA with the identity breaks it.
    """

    def __init__(self, contrast: float = 0.21, bits: int = 3) -> None:
        super().__init__()
        self.contrast = contrast
        self.round = Quantization(bits)

    def forward(self, images: Tensor) -> Tensor:
        low = images.mean(1).flatten(1).std(1) < self.contrast
        return torch.where(low.view(-1, 1, 1, 1), self.round(images), images)


def _thermometer(load: Loader) -> nn.Module:
    return Composite(Thermometer(), nn.Sequential(decoder(), load("resnet-standard"))).eval()


ENTRIES = (
    Entry(
        name="gradient-killer",
        backbone="vgg-adversarial",
        build=behind(GradientKiller, "vgg-adversarial"),
        reference=partial(attack_views, views=[bypass(GradientKiller)], losses=multi_targeted(10)),
        story=story(GradientKiller),
        suspicious=True,
    ),
    Entry(
        name="detached",
        backbone="vgg-standard",
        build=behind(Detached, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(Detached, Detached.smooth)]),
        story=story(Detached),
        suspicious=True,
    ),
    Entry(
        name="quantization",
        backbone="resnet-standard",
        build=behind(Quantization, "resnet-standard"),
        reference=partial(attack_views, views=[bypass(Quantization)], restarts=2),
        story=story(Quantization),
        suspicious=True,
    ),
    Entry(
        name="thermometer",
        backbone="resnet-standard",
        build=_thermometer,
        reference=partial(attack_views, views=[bypass(Thermometer, Thermometer.soft)], restarts=2),
        story=story(Thermometer),
        suspicious=True,
    ),
    Entry(
        name="dead-zone",
        backbone="vgg-standard",
        build=behind(DeadZone, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(DeadZone)]),
        story=story(DeadZone),
        suspicious=True,
    ),
)
