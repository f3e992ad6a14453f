"""Differentiable front ends whose gradient is exact but useless: ripples, deep networks, a ripple with a mirror."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from audits.defenses.entry import Entry, behind, story
from audits.defenses.references import attack_views, bypass
from pytest_gradmask import load_dataset
from pytest_gradmask.auditing.research import DnCNN, calibrated_front_end


class Ripple(nn.Module):
    """Each pixel plus a ripple, ``x + amplitude * sin(frequency * x)``.

    A construction that acts on each pixel as deep front ends act on images. The image hardly changes, and the
    derivative ``1 + amplitude * frequency * cos(frequency * x)`` changes its size and sign many times within the ball.
    The gradient is exact but useless, as are the shattered gradients of Balduzzi et al. (ICML 2017, arXiv:1702.08591)
    and Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420). BPDA with the identity breaks it.

    Args:
        amplitude: in input units.
        frequency: in radians per input unit; ``amplitude * frequency`` is the largest derivative of the ripple.
    """

    def __init__(self, amplitude: float = 0.01, frequency: float = 3000.0) -> None:
        super().__init__()
        self.amplitude, self.frequency = amplitude, frequency

    def forward(self, images: Tensor) -> Tensor:
        return images + self.amplitude * torch.sin(self.frequency * images)


def random_front_end() -> DnCNN:
    """A deep front end with fixed random weights that hardly changes an image.

    It is not trained. It has 65 convolutions with a skip connection around them. Its residual is scaled to a hundredth
    of the input range (over the embedded images). Its gradient explodes with depth and decorrelates over tiny distances
    (Balduzzi et al., "The shattered gradients problem", ICML 2017, arXiv:1702.08591). Boytsov, Joshi and Condessa
    (arXiv:2402.17018) observe this with trained front ends. BPDA with the identity breaks it.
    """
    images = load_dataset("embedded").images
    return calibrated_front_end(images, residual_std=0.01, seed=0, depth=65, width=8)


class Mirrored(nn.Module):
    """A ripple whose output is mirrored. Classifiers handle mirrored images well.

    Claim 5 of arXiv:2402.17018 is that BPDA works because a front end is nearly the identity. This front end differs
    from the identity as an image differs from its mirror image. BPDA fails with the identity as its approximation and
    succeeds with the mirror. Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) suggest such an approximation
    where the identity is a poor one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ripple = Ripple()

    def forward(self, images: Tensor) -> Tensor:
        return self.ripple(images).flip(-1)  # type: ignore[no-any-return]

    def mirror(self, images: Tensor) -> Tensor:
        """The mirror without the ripple."""
        return images.flip(-1)


_TRAINED = """The front end of Boytsov, Joshi and Condessa (arXiv:2402.17018, TMLR 2025), trained until it masks.

A DnCNN of 49 convolutions with a skip connection, trained adversarially before the frozen backbone for one epoch with
a small learning rate. AutoAttack's gradient attacks break few images of the composite, and BPDA with the identity
breaks it (claim 1 of the paper)."""

ENTRIES = (
    Entry(
        name="ripple",
        backbone="vgg-standard",
        build=behind(Ripple, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(Ripple)]),
        story=story(Ripple),
        suspicious=True,
    ),
    Entry(
        name="random-front-end",
        backbone="vgg-standard",
        build=behind(random_front_end, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(DnCNN)]),
        story=story(random_front_end),
        suspicious=True,
        slow=True,
    ),
    Entry(
        name="mirrored",
        backbone="vgg-standard",
        build=behind(Mirrored, "vgg-standard"),
        reference=partial(attack_views, views=[bypass(Mirrored, Mirrored.mirror)]),
        story=story(Mirrored),
        suspicious=True,
    ),
    Entry(
        name="trained-front-end",
        backbone="vgg-adversarial",
        build=lambda load: load("vgg-adversarial-composite"),
        reference=partial(attack_views, views=[bypass(DnCNN)]),
        story=_TRAINED,
        suspicious=True,
        slow=True,
    ),
)
