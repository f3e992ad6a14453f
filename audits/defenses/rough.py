"""Differentiable front ends whose gradient is exact and tells nothing: ripples, deep networks, a mirror before them."""

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

    A construction, the pointwise form of what deep front ends do: the image hardly changes, and its derivative
    ``1 + amplitude * frequency * cos(frequency * x)`` has a size and a sign that change many times within the ball. The
    gradient is exact and useless, as with the shattered gradients of Balduzzi et al. (ICML 2017) and Athalye, Carlini
    and Wagner (ICML 2018). BPDA with the identity breaks it.

    Args:
        amplitude: in input units.
        frequency: in radians an input unit; ``amplitude * frequency`` is the largest derivative of the ripple.
    """

    def __init__(self, amplitude: float = 0.01, frequency: float = 3000.0) -> None:
        super().__init__()
        self.amplitude, self.frequency = amplitude, frequency

    def forward(self, images: Tensor) -> Tensor:
        return images + self.amplitude * torch.sin(self.frequency * images)


def random_front_end() -> DnCNN:
    """A deep front end with random weights, fixed, that hardly changes an image.

    Not trained for anything: 65 convolutions with a skip connection around them, whose residual is scaled to a
    hundredth of the input range (over the embedded images). Its gradient explodes with depth and decorrelates over tiny
    distances (Balduzzi et al., "The shattered gradients problem", ICML 2017), which is the untrained half of what
    Boytsov, Joshi and Condessa (arXiv:2402.17018) observe. BPDA with the identity breaks it.
    """
    images = load_dataset("embedded").images
    return calibrated_front_end(images, residual_std=0.01, seed=0, depth=65, width=8)


class Mirrored(nn.Module):
    """A ripple whose output is mirrored, which classifiers do not mind.

    Claim 5 of arXiv:2402.17018: BPDA works because a front end is nearly the identity. This one is as far from it as an
    image from its mirror image; with the identity in its place BPDA goes astray, with the mirror it succeeds. Athalye,
    Carlini and Wagner (ICML 2018) ask for just such a substitute where the identity is a poor one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ripple = Ripple()

    def forward(self, images: Tensor) -> Tensor:
        return self.ripple(images).flip(-1)  # type: ignore[no-any-return]

    def mirror(self, images: Tensor) -> Tensor:
        """What is left without the front end."""
        return images.flip(-1)


_TRAINED = """The front end of Boytsov, Joshi and Condessa (arXiv:2402.17018, TMLR 2025), trained for masking.

A DnCNN of 49 convolutions with a skip connection, trained adversarially before the frozen backbone for one epoch with
a small learning rate. AutoAttack's gradient attacks hardly touch the composite and BPDA, with the identity in place of
the front end, breaks it (claim 1 of the paper)."""

ENTRIES = (
    Entry(
        "ripple", "vgg-standard", behind(Ripple, "vgg-standard"), partial(attack_views, views=[bypass(Ripple)]),
        story(Ripple), suspicious=True,
    ),
    Entry(
        "random-front-end", "vgg-standard", behind(random_front_end, "vgg-standard"),
        partial(attack_views, views=[bypass(DnCNN)]), story(random_front_end), suspicious=True, slow=True,
    ),
    Entry(
        "mirrored", "vgg-standard", behind(Mirrored, "vgg-standard"),
        partial(attack_views, views=[bypass(Mirrored, Mirrored.mirror)]), story(Mirrored), suspicious=True,
    ),
    Entry(
        "trained-front-end", "vgg-adversarial", lambda load: load("vgg-adversarial-composite"),
        partial(attack_views, views=[bypass(DnCNN)]), _TRAINED, suspicious=True, slow=True,
    ),
)  # fmt: skip
