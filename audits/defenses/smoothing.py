"""Front ends that smooth images: total variation, median, blur."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.transforms.functional import gaussian_blur

from audits.defenses.entry import Entry, behind, story
from audits.defenses.references import ITSELF, attack_views, bypass, multi_targeted


class TotalVariation(nn.Module):
    """Total variation minimisation by a solver outside of the autograd graph.

    It is the denoising of Rudin, Osher and Fatemi, solved by projections (Chambolle 2004) as in image libraries. Guo et
    al. (ICLR 2018, arXiv:1711.00117) use it against adversarial examples and also drop some pixels at random. Here only
    the denoising is used. Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) break it by BPDA with the identity.

    Args:
        weight: of the total variation, above 0. A larger weight smooths more.
        steps: of the solver.
    """

    def __init__(self, weight: float = 0.05, steps: int = 30) -> None:
        super().__init__()
        self.weight, self.steps = weight, steps

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        down, across = torch.zeros_like(images), torch.zeros_like(images)
        result = images
        for _ in range(self.steps):
            slope_down = pad(result.diff(dim=2), [0, 0, 0, 1])
            slope_across = pad(result.diff(dim=3), [0, 1, 0, 0])
            size = 1 + (slope_down**2 + slope_across**2).sqrt() * (0.25 / self.weight)
            down = (down + slope_down * (0.25 / self.weight)) / size
            across = (across + slope_across * (0.25 / self.weight)) / size
            divergence = pad(down, [0, 0, 1, 0]).diff(dim=2) + pad(across, [1, 0, 0, 0]).diff(dim=3)
            result = images + self.weight * divergence
        return result


class Median(nn.Module):
    """The median over windows of 2 x 2 pixels.

    It is the other feature squeezer of Xu, Evans and Qi (NDSS 2018, arXiv:1704.01155), at the size they use for
    CIFAR-10. He et al. (WOOT 2017, arXiv:1706.04701) break it with an optimiser that applies the squeezer in its steps.
    The gradient reaches only the two middle pixels of each window. It is sparse but correct.
    """

    def forward(self, images: Tensor) -> Tensor:
        windows = pad(images, [0, 1, 0, 1], mode="replicate").unfold(2, 2, 1).unfold(3, 2, 1).flatten(4)
        # The mean of the middle two, as in the image library of Xu et al.: torch.median returns the smaller one.
        return windows.sort(dim=4).values[..., 1:3].mean(4)


class Blur(nn.Module):
    """A mild Gaussian blur over 3 x 3 pixels. It is linear and, except for rounding, invertible.

    Blurring is one of the oldest defenses. It costs a little accuracy, and its gradient is exact. It is a control.
    """

    def forward(self, images: Tensor) -> Tensor:
        return gaussian_blur(images, [3, 3], [0.5, 0.5])  # type: ignore[no-any-return]


ENTRIES = (
    Entry(
        name="total-variation",
        backbone="vgg-standard",
        build=behind(TotalVariation, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(TotalVariation)], restarts=2),
        story=story(TotalVariation),
        suspicious=True,
    ),
    Entry(
        name="median",
        backbone="vgg-standard",
        build=behind(Median, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(Median), ITSELF]),
        story=story(Median),
        suspicious=True,
    ),
    Entry(
        name="blur-adversarial",
        backbone="vgg-adversarial",
        build=behind(Blur, "vgg-adversarial"),
        reference=partial(attack_views, losses=multi_targeted(10)),
        story=story(Blur),
        suspicious=False,
    ),
)
