"""Masks written out in a forward: pixels that are rounded, looked up, sorted or filtered where no gradient follows.

None of them has a module of its own. An attacker who reads the code replaces one line by a function with a gradient.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torch.nn.functional import embedding

from audits.defenses.entry import Entry, around, story
from audits.defenses.references import attack_views, instead


class Inside(nn.Module):
    """Holds the classifier whose images a defense changes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()


class FlooredPixels(Inside):
    """Rounds pixels down to 16 levels, by ``floor``.

    Bit depth reduction (Xu, Evans and Qi, NDSS 2018, arXiv:1704.01155; Guo et al., ICLR 2018, arXiv:1711.00117) as a
    line of code. Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) break it by BPDA with the identity.
    """

    def forward(self, images: Tensor) -> Tensor:
        return self.model(((images * 16).floor().clamp_max(15) + 0.5) / 16)  # type: ignore[no-any-return]


class IntegerPixels(Inside):
    """Turns images into bytes and back, as a service that stores its images does.

    The cast has no gradient, and hardly changes an image. Papernot et al. (2017, arXiv:1602.02697) call a defense whose
    gradient is hidden in this way gradient masking. BPDA with the identity (Athalye, Carlini and Wagner 2018,
    arXiv:1802.00420) breaks it.
    """

    def forward(self, images: Tensor) -> Tensor:
        stored = (images * 255).round().clamp(0, 255).to(torch.uint8)
        return self.model(stored.to(images.dtype) / 255)  # type: ignore[no-any-return]


class NumpyPixels(Inside):
    """A gamma correction written with NumPy, outside of the autograd graph.

    Preprocessing is often written so (compare `Detached`). Carlini et al. ("On evaluating adversarial robustness",
    2019, arXiv:1902.06705) recommend to attack the whole pipeline. The attack writes the same function in torch.
    """

    def forward(self, images: Tensor) -> Tensor:
        corrected = np.power(images.detach().cpu().numpy(), 0.9)
        return self.model(torch.from_numpy(corrected).to(images))  # type: ignore[no-any-return]

    def differentiable(self, images: Tensor) -> Tensor:
        """The same in torch. The derivative is infinite at zero."""
        return self.model(images.clamp_min(1e-3).pow(0.9))  # type: ignore[no-any-return]


class Palette(Inside):
    """Replaces the colour of each pixel by the nearest of 216, by an index into a table.

    Pixel discretisation over a codebook of colours (Zhang and Liang, "Defending against whitebox adversarial attacks
    via randomized discretization", AISTATS 2019, arXiv:1903.10586; Chen et al., "Improving adversarial robustness by
    data-specific discretization", 2018, arXiv:1805.07816). Chen et al. attack their own by BPDA (Athalye, Carlini and
    Wagner 2018, arXiv:1802.00420), as here. The colours are a fixed grid of six levels for each channel.
    """

    def forward(self, images: Tensor) -> Tensor:
        levels = torch.linspace(0, 1, 6, device=images.device)
        colours = torch.cartesian_prod(levels, levels, levels)
        pixels = images.permute(0, 2, 3, 1)
        nearest = torch.cdist(pixels.reshape(-1, 3), colours).argmin(1)
        return self.model(colours[nearest].view(pixels.shape).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class Histogram(Inside):
    """Sorts pixels into 20 bins, and looks up a value for each bin.

    Discretisation as in one-hot and thermometer encodings (Buckman et al., ICLR 2018), whose gradients Athalye, Carlini
    and Wagner (ICML 2018, arXiv:1802.00420) find shattered and replace. The bins are narrow where most pixels are, as
    those of histogram equalisation. An index has no gradient. The attack is BPDA with the identity.
    """

    def forward(self, images: Tensor) -> Tensor:
        edges = torch.linspace(0, 1, 21, device=images.device)
        edges = edges + 0.05 * (2 * torch.pi * edges).sin()
        bins = torch.bucketize(images.contiguous(), edges[1:-1])
        values = (edges[1:] + edges[:-1]) / 2
        return self.model(embedding(bins, values[:, None]).squeeze(-1))  # type: ignore[no-any-return]


class SignedCode(Inside):
    """Codes each pixel by the signs of its distances to 12 thresholds, and adds these up again.

    It is a thermometer code (Buckman et al., ICLR 2018) within one line, which keeps the shape of the images. Binary
    activations as a defense (Galloway, Taylor and Moussa, "Attacking binarized neural networks", ICLR 2018,
    arXiv:1711.00449) hide the gradient in the same way. The attack is BPDA with the identity (Athalye, Carlini and
    Wagner 2018, arXiv:1802.00420).
    """

    def forward(self, images: Tensor) -> Tensor:
        thresholds = (torch.arange(12, device=images.device) + 0.5) / 12
        signs = (images[..., None] - thresholds).sign()
        return self.model((signs.mean(-1) + 1) / 2)  # type: ignore[no-any-return]


class RankMeans(Inside):
    """Sorts the pixels of each channel, and gives 32 neighbours in this order their mean.

    A construction: it hardly changes the image, and its derivative exists. But what a pixel changes is shared by 32
    pixels of the same brightness all over the image, so that the gradient is smeared over them. It is exact and of
    little use, as are the shattered gradients of Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420). The attack
    is BPDA with the identity.
    """

    def forward(self, images: Tensor) -> Tensor:
        ordered, places = images.flatten(2).sort(dim=2)
        means = ordered.unflatten(2, (-1, 32)).mean(3, keepdim=True).expand(-1, -1, -1, 32).flatten(2)
        return self.model(torch.zeros_like(ordered).scatter(2, places, means).view_as(images))  # type: ignore[no-any-return]


class SparseCosines(Inside):
    """Keeps the largest fifth of an image's cosine coefficients, by SciPy.

    Compression in a transform domain is among the input transformations of Das et al. (2017, arXiv:1705.02900) and of
    Bafna, Murtagh and Vyas ("Thwarting adversarial examples: an L0-robust sparse Fourier transform", NeurIPS 2018,
    arXiv:1812.05013), who keep the largest coefficients of a cosine transform. Athalye, Carlini and Wagner (ICML 2018,
    arXiv:1802.00420) break such input transformations by BPDA with the identity.
    """

    def forward(self, images: Tensor) -> Tensor:
        coefficients = dctn(images.detach().cpu().numpy(), axes=(2, 3), norm="ortho")
        sizes = np.abs(coefficients).reshape(*coefficients.shape[:2], -1)
        least = np.sort(sizes, axis=2)[..., -sizes.shape[2] // 5][..., None, None]
        kept = np.where(np.abs(coefficients) >= least, coefficients, 0)
        return self.model(torch.from_numpy(idctn(kept, axes=(2, 3), norm="ortho")).to(images))  # type: ignore[no-any-return]


def plain(model: nn.Module, images: Tensor) -> Tensor:
    """The classifier inside of a defense, at the images themselves."""
    return model.get_submodule("model")(images)  # type: ignore[no-any-return]


ENTRIES = tuple(
    Entry(
        name=name,
        backbone=backbone,
        build=around(kind, backbone),
        reference=partial(attack_views, views=[instead(function)], restarts=2),
        story=story(kind),
        suspicious=True,
        slow=name not in ("integer-pixels", "palette"),
    )
    for name, kind, backbone, function in (
        ("floored-pixels", FlooredPixels, "resnet-standard", plain),
        ("integer-pixels", IntegerPixels, "vgg-standard", plain),
        ("numpy-pixels", NumpyPixels, "vgg-standard", NumpyPixels.differentiable),
        ("palette", Palette, "vgg-standard", plain),
        ("histogram", Histogram, "vgg-standard", plain),
        ("signed-code", SignedCode, "resnet-standard", plain),
        ("rank-means", RankMeans, "vgg-standard", plain),
        ("sparse-cosines", SparseCosines, "vgg-standard", plain),
    )
)
