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
    """Total variation minimisation, by a solver outside the graph.

    Rudin, Osher and Fatemi's denoising, solved by projections (Chambolle 2004) as image libraries do. Guo et al. (ICLR
    2018) use it against adversarial examples, on images some of whose pixels they drop at random; this is the denoising
    alone. Athalye, Carlini and Wagner (ICML 2018) break it by BPDA with the identity.

    Args:
        weight: of the total variation; 0 leaves images as they are.
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

    The other feature squeezer of Xu, Evans and Qi (NDSS 2018), at the size they use for CIFAR-10. He et al. (WOOT
    2017) break it with an optimiser that squeezes on its way. The median passes the gradient to one pixel of each
    window: sparse, but right.
    """

    def forward(self, images: Tensor) -> Tensor:
        windows = pad(images, [0, 1, 0, 1], mode="replicate").unfold(2, 2, 1).unfold(3, 2, 1).flatten(4)
        # The mean of the middle two, as Xu et al.'s image library has it: torch.median is the smaller one.
        return windows.sort(dim=4).values[..., 1:3].mean(4)


class Blur(nn.Module):
    """A mild Gaussian blur, 3 x 3 pixels, linear and invertible but for rounding.

    Blurring is as old as defenses are, and loses nothing but a little accuracy: its gradient is exact. A control.
    """

    def forward(self, images: Tensor) -> Tensor:
        return gaussian_blur(images, [3, 3], [0.5, 0.5])  # type: ignore[no-any-return]


ENTRIES = (
    Entry(
        "total-variation", "vgg-standard", behind(TotalVariation, "vgg-standard"),
        partial(attack_views, views=[bypass(TotalVariation)], restarts=2), story(TotalVariation), suspicious=True,
    ),
    Entry(
        "median", "vgg-standard", behind(Median, "vgg-standard"),
        partial(attack_views, views=[bypass(Median), ITSELF]), story(Median), suspicious=True,
    ),
    Entry(
        "blur-adversarial", "vgg-adversarial", behind(Blur, "vgg-adversarial"),
        partial(attack_views, losses=multi_targeted(10)), story(Blur), suspicious=False,
    ),
)  # fmt: skip
