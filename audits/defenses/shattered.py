"""Front ends whose gradient is nil: computed outside the graph, rounded, or cut."""

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

    Nobody published it as a defense: it is masking in its purest form (Papernot et al. 2017, "Practical black-box
    attacks against machine learning", name the phenomenon) and the first thing a detector must see. Taking it for the
    identity on the backward pass (Athalye, Carlini and Wagner 2018) undoes it.
    """

    def forward(self, images: Tensor) -> Tensor:
        return _NoGradient.apply(images)  # type: ignore[no-any-return]


class Detached(nn.Module):
    """A mild smoothing outside the graph, as a preprocessing step in NumPy would be.

    Defenses by input transformations are often written so, and their gradient is then missing by accident of
    implementation. Carlini et al. 2019 ("On evaluating adversarial robustness") ask to attack through the
    whole pipeline: the same smoothing with a graph does it.
    """

    def smooth(self, images: Tensor) -> Tensor:
        """A tenth of the way to the mean over 3 x 3 pixels."""
        return torch.lerp(images, avg_pool2d(pad(images, [1] * 4, mode="replicate"), 3, 1), 0.1)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.smooth(images)


class Quantization(nn.Module):
    """Rounds pixels to ``2 ** bits`` levels.

    Bit depth reduction is one of the feature squeezers of Xu, Evans and Qi (NDSS 2018) and one of the input
    transformations of Guo et al. (ICLR 2018). Its gradient is zero almost everywhere. He et al. (WOOT 2017) break
    feature squeezing, and Athalye, Carlini and Wagner (ICML 2018) Guo et al., by BPDA with the identity.
    """

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        self.levels: int = 2**bits - 1

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.levels).round() / self.levels


class Thermometer(nn.Module):
    """Thermometer encoding: each pixel becomes ``levels`` bits, the j-th of which says whether it is above j / levels.

    Buckman et al. (ICLR 2018) train a classifier on such codes. The encoding has no gradient, and they attacked it with
    a discrete relaxation of their own. Athalye, Carlini and Wagner (ICML 2018) break it by BPDA with
    the soft code ``clip(levels * x - j, 0, 1)``, to below the robustness of plain adversarial training.

    Here, no classifier is trained on codes: one is constructed. `Decoder`, a linear layer with fixed weights, turns a
    code back into a pixel and is the first layer of a classifier that takes codes, whose other layers are those of
    the trained backbone. What is lost is the resolution of the pixels only. The encoder changes the shape of the
    images, so that no search for near-identity front ends finds it: a substitute has to be fitted.

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
        """The differentiable code of Athalye et al., which decodes to the image itself, but for a constant."""
        return (self.levels * (images[:, :, None] - self.thresholds)).clamp(0, 1).flatten(1, 2)


def decoder(levels: int = 16, channels: int = 3) -> nn.Conv2d:
    """From thermometer codes to the middle of the interval that each stands for; a fixed 1 x 1 convolution."""
    layer = nn.Conv2d(channels * levels, channels, 1, groups=channels)
    nn.init.constant_(layer.weight, 1 / levels)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -0.5 / levels)
    return layer


class DeadZone(nn.Module):
    """Rounds images of low contrast to 3 bits and leaves all others as they are.

    A construction after the input-dependent defenses that make evaluation hard: the gradient is exactly zero in one
    region of the input space and healthy in the rest, so that a look at a few images may miss it. No small perturbation
    leaves the region. BPDA with the identity does not care.
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
        "gradient-killer", "vgg-adversarial", behind(GradientKiller, "vgg-adversarial"),
        partial(attack_views, views=[bypass(GradientKiller)], losses=multi_targeted(10)), story(GradientKiller),
        suspicious=True,
    ),
    Entry(
        "detached", "vgg-standard", behind(Detached, "vgg-standard"),
        partial(attack_views, views=[bypass(Detached, Detached.smooth)]), story(Detached), suspicious=True,
    ),
    Entry(
        "quantization", "resnet-standard", behind(Quantization, "resnet-standard"),
        partial(attack_views, views=[bypass(Quantization)], restarts=2), story(Quantization),
        suspicious=True,
    ),
    Entry(
        "thermometer", "resnet-standard", _thermometer,
        partial(attack_views, views=[bypass(Thermometer, Thermometer.soft)], restarts=2), story(Thermometer),
        suspicious=True,
    ),
    Entry(
        "dead-zone", "vgg-standard", behind(DeadZone, "vgg-standard"),
        partial(attack_views, views=[bypass(DeadZone)]), story(DeadZone), suspicious=True,
    ),
)  # fmt: skip
