"""Defenses that change the outputs of a classifier: saturated, squeezed, reversed, grouped."""

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

    A factor of 100 has the effect of defensive distillation (Papernot et al., IEEE S&P 2016, arXiv:1511.04508).
    Training at a temperature of 100 and deployment at 1 makes logits a hundred times as large. The softmax of the
    cross-entropy then saturates, so that its gradient is zero in float32. Broken by Carlini and Wagner ("Defensive
    distillation is not robust to adversarial examples", 2016, arXiv:1607.04311; IEEE S&P 2017, arXiv:1608.04644) with a
    loss on the logits themselves, or by dividing the logits again.

    A factor of 0.01 is a control. The cross-entropy is nearly flat and its gradient is small, which does not affect
    attacks that use only the gradient's direction.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)  # type: ignore[no-any-return]


class Softmax(nn.Module):
    """A classifier that ends in a softmax. The cross-entropy then applies a second softmax.

    It is a flaw of many evaluations rather than a defense (Carlini et al., "On evaluating adversarial robustness",
    2019, arXiv:1902.06705). Pintor et al. (NeurIPS 2022, arXiv:2106.09947) find it in published code. With a
    temperature well below 1 the probabilities are 0 and 1 in float32, so that their gradient and their differences are
    lost. The attack removes the softmax, as Carlini and Wagner (2016, arXiv:1607.04311) do with defensive distillation.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(images) / self.temperature).softmax(1)  # type: ignore[no-any-return]


class ReverseSigmoid(nn.Module):
    """Probabilities with a perturbation that keeps their order but makes their gradient misleading.

    Proposed by Lee et al. ("Defending against neural network model stealing attacks using deceptive perturbations",
    IEEE S&P Workshops 2019) against model stealing. It subtracts ``strength * (sigmoid(slope * logit(y)) - 1/2)`` from
    each probability y, and then divides by the sum. Where y is near 0 or 1, the output decreases as y increases, so
    that its gradient points to higher confidence. Orekondy, Schiele and Fritz (ICLR 2020, arXiv:1906.10908) note that
    the label does not change, and that many attacks need only the label. A white-box attacker removes the perturbation.

    Args:
        strength: below 1, so that the largest probability stays the largest.
        slope: in (0, 1). A smaller one makes the gradient misleading over a wider range.
    """

    def __init__(self, model: nn.Module, strength: float = 0.9, slope: float = 0.2) -> None:
        super().__init__()
        self.model, self.strength, self.slope = model, strength, slope
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        true = self.model(images).softmax(1).clamp(1e-6, 1 - 1e-6)
        disturbed = true - self.strength * (torch.sigmoid(self.slope * true.logit()) - 0.5)
        return disturbed / disturbed.sum(1, keepdim=True)  # type: ignore[no-any-return]


class SmoothedOutputs(nn.Module):
    """Logits of probabilities that are mixed with the uniform distribution at inference.

    Warde-Farley and Goodfellow (2016) and Shafahi et al. ("Label smoothing and logit squeezing", 2019,
    arXiv:1910.11585) recommend label smoothing as a cheap defense. Mosbach et al. ("Logit pairing methods can fool
    gradient-based attacks", 2018, arXiv:1810.12042) and others find that it does not defend against attacks with enough
    steps and restarts. The three standard backbones were trained with label smoothing. This module applies it to the
    outputs of a backbone that was not. No class has a probability below ``share / classes``. The order of the classes
    stays the same, and so do the adversarial examples. It is a control.
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

    This is the mildest form of logit squeezing (Kannan, Kurakin and Goodfellow, "Adversarial logit pairing", 2018,
    arXiv:1803.06373; broken by Engstrom, Ilyas and Athalye 2018, arXiv:1807.10272, with more steps), around an
    adversarially trained classifier. The order of the logits stays the same and their gradient is correct. The
    cross-entropy distinguishes less between very large logits, so that attacks on it and attacks on the logit margin
    differ by one or two percentage points. Such differences are normal. It is a control.
    """

    def __init__(self, model: nn.Module, bound: float = 3.0) -> None:
        super().__init__()
        self.model, self.bound = model, bound
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.bound * torch.tanh(self.model(images) / self.bound)


class Grouped(nn.Module):
    """A classifier of groups of classes. The probability of a group is the sum of those of its classes.

    It is a control with few classes: targeted attacks have few targets, and the DLR loss needs three classes.

    Args:
        model: a classifier of K classes.
        groups: the group of each of the K classes, 0 to G - 1.
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
    """Convert class labels to group labels, both int64, N."""
    return torch.tensor(groups, device=labels.device)[labels]


#: Groups of CIFAR-10's classes: vehicles and animals, or vehicles, pets and other animals.
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
        name="defensive-distillation",
        backbone="resnet-standard",
        build=around(partial(Scaled, factor=100.0), "resnet-standard"),
        reference=_INSIDE,
        story=story(Scaled),
        suspicious=True,
    ),
    Entry(
        name="extra-softmax",
        backbone="vgg-standard",
        build=around(_softmax, "vgg-standard"),
        reference=_INSIDE,
        story=story(Softmax),
        suspicious=True,
    ),
    Entry(
        name="saturated-softmax",
        backbone="resnet-standard",
        build=around(partial(_softmax, temperature=0.01), "resnet-standard"),
        reference=_INSIDE,
        story=story(Softmax),
        suspicious=True,
    ),
    Entry(
        name="reverse-sigmoid",
        backbone="vgg-standard",
        build=around(_reversed, "vgg-standard"),
        reference=_INSIDE,
        story=story(ReverseSigmoid),
        suspicious=True,
    ),
    Entry(
        name="small-logits",
        backbone="resnet-standard",
        build=around(partial(Scaled, factor=0.01), "resnet-standard"),
        reference=_INSIDE,
        story=story(Scaled),
        suspicious=False,
    ),
    Entry(
        name="label-smoothing",
        backbone="vgg-adversarial",
        build=around(SmoothedOutputs, "vgg-adversarial"),
        reference=partial(attack_views, views=[inside("model")], losses=multi_targeted(10)),
        story=story(SmoothedOutputs),
        suspicious=False,
    ),
    Entry(
        name="soft-saturation",
        backbone="vgg-adversarial",
        build=around(SoftSaturation, "vgg-adversarial"),
        reference=partial(attack_views, views=[inside("model")], losses=multi_targeted(10)),
        story=story(SoftSaturation),
        suspicious=False,
    ),
    Entry(
        name="two-classes",
        backbone="vgg-standard",
        build=around(partial(Grouped, groups=TWO), "vgg-standard"),
        reference=attack_views,
        story=story(Grouped),
        suspicious=False,
        labels=partial(regroup, groups=TWO),
    ),
    Entry(
        name="three-classes",
        backbone="vgg-adversarial",
        build=around(partial(Grouped, groups=THREE), "vgg-adversarial"),
        reference=partial(attack_views, losses=multi_targeted(3)),
        story=story(Grouped),
        suspicious=False,
        labels=partial(regroup, groups=THREE),
    ),
)
