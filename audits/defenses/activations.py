"""Defenses in the activations of a network: k-winners-take-all, stochastic activation pruning, dropout left on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from audits.defenses.entry import Entry, around, story
from audits.defenses.references import ITSELF, attack_views, bypass, smoothed, through


def replace_relus(model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Replace every ReLU of a model by another activation. The model is changed itself.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, make())
    return model.eval()


class KWinnersTakeAll(nn.Module):
    """k-WTA: keeps the largest ``share`` of each image's activations in a layer, and sets the others to zero.

    Proposed by Xiao, Zhong and Zheng ("Enhancing adversarial defense by k-winners-take-all", ICLR 2020,
    arXiv:1905.10510). The network becomes densely discontinuous, so that its gradient says little about its values
    nearby. Broken by Tramèr, Carlini, Brendel and Madry ("On adaptive attacks to adversarial example defenses", NeurIPS
    2020, arXiv:2002.08347) with gradients averaged over many nearby points. A BPDA attack uses the ReLU instead of this
    activation on the backward pass.

    Xiao et al. train with it. Here it replaces the ReLUs of a trained classifier, at a share that keeps most of the
    clean accuracy. At a share of 0.15, the VGG classifies 82 of 100 images correctly (92 with its ReLUs). The ResNet
    needs 0.25 for a similar accuracy.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(hidden)

    def as_relu(self, hidden: Tensor) -> Tensor:
        """The ReLU that this activation replaced."""
        return relu(hidden)


class ActivationPruning(nn.Module):
    """Stochastic activation pruning, after a ReLU: keeps each activation with a probability that grows with its size.

    Proposed by Dhillon et al. (ICLR 2018, arXiv:1803.01442). They draw ``share`` times as many activations as there
    are, with replacement and in proportion to their sizes. An activation that is drawn is kept and divided by the
    probability of being drawn. Here each activation is kept independently of the others, with the same probability.
    Broken by Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420) by EOT, the mean gradient of some draws. They
    also find that it adds no robustness to the network it prunes.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        flat = relu(hidden).flatten(1)
        with torch.no_grad():
            chances = flat / flat.sum(1, keepdim=True).clamp_min(1e-12)
            keep_chances = -torch.expm1(self.share * flat.shape[1] * torch.log1p(-chances.clamp_max(1 - 1e-6)))
            factors = torch.where(torch.rand_like(keep_chances) < keep_chances, 1 / keep_chances, 0)
        return (flat * factors).view_as(hidden)


def leave_dropout_on(model: nn.Module, chance: float = 0.1) -> nn.Module:
    """A classifier with mild dropout before its last layer, left on at inference.

    Dropout at inference is the approximate Bayesian network of Gal and Ghahramani (ICML 2016, arXiv:1506.02142).
    Feinman et al. (2017, arXiv:1703.00410) detect adversarial examples by its variance, and Carlini and Wagner (AISec
    2017, arXiv:1705.07263) evade this detector. The dropout here is so mild that it neither defends nor masks, once the
    gradient is averaged over forwards. It is a control.
    """
    dropout = nn.Dropout(chance)
    model.get_submodule("1.head").drop = dropout
    model.eval()
    dropout.train()
    return model


_AS_RELU = bypass(KWinnersTakeAll, KWinnersTakeAll.as_relu)

ENTRIES = (
    Entry(
        name="k-winners-take-all",
        backbone="vgg-standard",
        build=around(partial(replace_relus, make=partial(KWinnersTakeAll, 0.15)), "vgg-standard"),
        reference=partial(attack_views, views=[_AS_RELU, through(_AS_RELU, smoothed(0.01)), smoothed(0.01)]),
        story=story(KWinnersTakeAll),
        suspicious=True,
    ),
    Entry(
        name="activation-pruning",
        backbone="vgg-standard",
        build=around(partial(replace_relus, make=partial(ActivationPruning, 1.0)), "vgg-standard"),
        reference=partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20),
        story=story(ActivationPruning),
        suspicious=True,
        randomized=True,
    ),
    Entry(
        name="dropout-left-on",
        backbone="vgg-adversarial",
        build=around(leave_dropout_on, "vgg-adversarial"),
        reference=partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20),
        story=story(leave_dropout_on),
        suspicious=False,
        randomized=True,
    ),
)
