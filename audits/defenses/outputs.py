"""Defenses in what a classifier returns: saturated, squeezed, reversed, grouped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from audits.defenses.entry import Entry, around, story
from audits.defenses.references import attack_views, inside, multi_targeted
from pytest_gradmask import Defense


class Scaled(nn.Module):
    """Logits times a factor.

    A factor of 100 is what defensive distillation comes to (Papernot et al., IEEE S&P 2016): training at a temperature
    of 100 and deployment at 1 makes logits a hundred times as large, and the softmax of the cross-entropy saturates
    until its gradient is zero in float32. Broken by Carlini and Wagner ("Defensive distillation is not robust to
    adversarial examples", 2016; IEEE S&P 2017) by a loss on the logits themselves, or by dividing them again.

    A factor of a hundredth is a control: the cross-entropy is nearly flat and its gradient small, and no attack that
    takes the gradient's direction minds.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)  # type: ignore[no-any-return]


class Softmax(nn.Module):
    """A classifier that ends in a softmax, so that the cross-entropy's own is the second one.

    A flaw of many an evaluation rather than a defense (Carlini et al., "On evaluating adversarial robustness", 2019;
    Pintor et al., NeurIPS 2022, find it in published code). With a temperature well below 1 the probabilities are 0
    and 1 in float32: whatever is made of them, their gradient is gone for good, and so are their differences. The
    attack is to take the softmax off, which defensive distillation's attackers did (Carlini and Wagner 2016).
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(images) / self.temperature).softmax(1)  # type: ignore[no-any-return]


class ReverseSigmoid(nn.Module):
    """Probabilities disturbed so that their changes deceive and their order stays.

    Proposed by Lee et al. ("Defending against neural network model stealing attacks using deceptive perturbations",
    IEEE S&P Workshops 2019) against model stealing: from each probability y it takes
    ``strength * (sigmoid(slope * logit(y)) - 1/2)`` and then divides by the sum. Where y is near 0 or 1, what is
    returned falls as y rises, so that its gradient points to where the classifier is surer. Orekondy, Schiele and Fritz
    (ICLR 2020) note that it cannot change the label, which is all that many attacks need; a white-box attacker takes
    it off.

    Args:
        strength: below 1, so that the largest probability stays the largest.
        slope: in (0, 1): the smaller, the wider the range in which the gradient deceives.
    """

    def __init__(self, model: nn.Module, strength: float = 0.9, slope: float = 0.2) -> None:
        super().__init__()
        self.model, self.strength, self.slope = model, strength, slope
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        honest = self.model(images).softmax(1).clamp(1e-6, 1 - 1e-6)
        disturbed = honest - self.strength * (torch.sigmoid(self.slope * honest.logit()) - 0.5)
        return disturbed / disturbed.sum(1, keepdim=True)  # type: ignore[no-any-return]


class SmoothedOutputs(nn.Module):
    """Logits of probabilities that are mixed with the uniform distribution, at inference.

    Label smoothing was recommended as a cheap defense by Warde-Farley and Goodfellow (2016) and Shafahi et al. ("Label
    smoothing and logit squeezing", 2019), and found to be none by, among others, Mosbach et al. ("Logit pairing methods
    can fool gradient-based attacks", 2018) once attacks are given enough steps and restarts. The three standard
    backbones were themselves trained with it. This does the same to the outputs of one that was not: no class gets a
    probability below ``share / classes``, the order stays, and so do the adversarial examples. A control.
    """

    def __init__(self, model: nn.Module, share: float = 0.1) -> None:
        super().__init__()
        self.model, self.share = model, share
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        probabilities = self.model(images).softmax(1)
        return ((1 - self.share) * probabilities + self.share / probabilities.shape[1]).log()  # type: ignore[no-any-return]


class SoftSaturation(nn.Module):
    """Logits squeezed into an interval by a hyperbolic tangent.

    Logit squeezing (Kannan, Kurakin and Goodfellow, "Adversarial logit pairing", 2018; broken by Engstrom, Ilyas and
    Athalye 2018 with more steps) in its mildest form, around an adversarially trained classifier. The order of the
    logits stays and their gradient is right, but the cross-entropy now tells less of the classes that are far ahead, so
    that attacks on it and attacks on the margin differ by a point or two. Such differences are normal. A control.
    """

    def __init__(self, model: nn.Module, bound: float = 3.0) -> None:
        super().__init__()
        self.model, self.bound = model, bound
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.bound * torch.tanh(self.model(images) / self.bound)


class Grouped(nn.Module):
    """A classifier of groups of classes, made exactly from one of classes: a group's probability is the sum of theirs.

    A control with few classes, where targeted attacks have few targets and DLR needs three.

    Args:
        model: a classifier of K classes.
        groups: for each of the K classes its group, 0 to G - 1.
    """

    outside: Tensor

    def __init__(self, model: nn.Module, groups: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        members = torch.tensor(groups) == torch.arange(max(groups) + 1)[:, None]
        self.register_buffer("outside", torch.where(members, 0.0, -torch.inf), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(images)[:, None] + self.outside).logsumexp(2)  # type: ignore[no-any-return]


def regroup(labels: Tensor, *, groups: Sequence[int]) -> Tensor:
    """From classes to groups, int64, N."""
    return torch.tensor(groups, device=labels.device)[labels]


#: CIFAR-10's classes as vehicles and animals; as vehicles, pets and other animals.
TWO = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)
THREE = (0, 0, 2, 1, 2, 1, 2, 2, 0, 0)


def _probabilities(model: nn.Module) -> Defense:
    return Defense(model, outputs="probabilities")


def _softmax(model: nn.Module, temperature: float = 1.0) -> Defense:
    return _probabilities(Softmax(model, temperature))


def _reversed(model: nn.Module) -> Defense:
    return _probabilities(ReverseSigmoid(model))


_INSIDE = partial(attack_views, views=[inside("model")])

ENTRIES = (
    Entry(
        "defensive-distillation", "resnet-standard", around(partial(Scaled, factor=100.0), "resnet-standard"), _INSIDE,
        story(Scaled), suspicious=True,
    ),
    Entry(
        "extra-softmax", "vgg-standard", around(_softmax, "vgg-standard"), _INSIDE, story(Softmax), suspicious=True,
    ),
    Entry(
        "saturated-softmax", "resnet-standard", around(partial(_softmax, temperature=0.01), "resnet-standard"), _INSIDE,
        story(Softmax), suspicious=True,
    ),
    Entry(
        "reverse-sigmoid", "vgg-standard", around(_reversed, "vgg-standard"), _INSIDE, story(ReverseSigmoid),
        suspicious=True,
    ),
    Entry(
        "small-logits", "resnet-standard", around(partial(Scaled, factor=0.01), "resnet-standard"), _INSIDE,
        story(Scaled), suspicious=False,
    ),
    Entry(
        "label-smoothing", "vgg-adversarial", around(SmoothedOutputs, "vgg-adversarial"),
        partial(attack_views, views=[inside("model")], losses=multi_targeted(10)), story(SmoothedOutputs),
        suspicious=False,
    ),
    Entry(
        "soft-saturation", "vgg-adversarial", around(SoftSaturation, "vgg-adversarial"),
        partial(attack_views, views=[inside("model")], losses=multi_targeted(10)), story(SoftSaturation),
        suspicious=False,
    ),
    Entry(
        "two-classes", "vgg-standard", around(partial(Grouped, groups=TWO), "vgg-standard"), attack_views,
        story(Grouped), suspicious=False, labels=partial(regroup, groups=TWO),
    ),
    Entry(
        "three-classes", "vgg-adversarial", around(partial(Grouped, groups=THREE), "vgg-adversarial"),
        partial(attack_views, losses=multi_targeted(3)), story(Grouped), suspicious=False,
        labels=partial(regroup, groups=THREE),
    ),
)  # fmt: skip
