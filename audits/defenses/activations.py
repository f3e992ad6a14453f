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
    """Put another activation in the place of every ReLU, in place.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, make())
    return model.eval()


class KWinnersTakeAll(nn.Module):
    """k-WTA: keeps the largest ``share`` of each image's activations in a layer, and sets the others to nought.

    Proposed by Xiao, Zhong and Zheng ("Enhancing adversarial defense by k-winners-take-all", ICLR 2020): the network
    becomes densely discontinuous, so that its gradient says little about where it goes. Broken by Tramèr, Carlini,
    Brendel and Madry ("On adaptive attacks to adversarial example defenses", NeurIPS 2020) with gradients
    averaged over many points near by. Another way is to take the activation for the ReLU it replaced on the backward
    pass.

    Xiao et al. train with it; here it replaces the ReLUs of a trained classifier, at a share that it bears: VGG keeps
    82 of 100 images at 0.15 (92 with its ReLUs), the ResNet needs 0.25 for as many.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(hidden)

    def as_relu(self, hidden: Tensor) -> Tensor:
        """The activation it replaced."""
        return relu(hidden)


class ActivationPruning(nn.Module):
    """Stochastic activation pruning, after a ReLU: keeps activations with a chance that grows with their size.

    Proposed by Dhillon et al. (ICLR 2018): draw ``share`` times as many activations as there are, with replacement, in
    proportion to their sizes; keep those drawn, divided by their chance to be. Here each is kept or not independently
    of the others, with just that chance. Broken by Athalye, Carlini and Wagner (ICML 2018) by EOT: the
    mean gradient of some draws. They also find that it adds nothing to the network it prunes.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        flat = relu(hidden).flatten(1)
        with torch.no_grad():
            chances = flat / flat.sum(1, keepdim=True).clamp_min(1e-12)
            kept = -torch.expm1(self.share * flat.shape[1] * torch.log1p(-chances.clamp_max(1 - 1e-6)))
            factors = torch.where(torch.rand_like(kept) < kept, 1 / kept, 0)
        return (flat * factors).view_as(hidden)


def leave_dropout_on(model: nn.Module, chance: float = 0.1) -> nn.Module:
    """A classifier with mild dropout before its last layer, left on at inference.

    Dropout at inference is the approximate Bayesian network of Gal and Ghahramani (ICML 2016); Feinman et al. (2017)
    detect adversarial examples by its variance and Carlini and Wagner (AISec 2017) evade them. As mild as here it
    neither defends nor hides anything, once the gradient is averaged over forwards. A control.
    """
    dropout = nn.Dropout(chance)
    model.get_submodule("1.head").drop = dropout
    model.eval()
    dropout.train()
    return model


_AS_RELU = bypass(KWinnersTakeAll, KWinnersTakeAll.as_relu)

ENTRIES = (
    Entry(
        "k-winners-take-all", "vgg-standard",
        around(partial(replace_relus, make=partial(KWinnersTakeAll, 0.15)), "vgg-standard"),
        partial(attack_views, views=[_AS_RELU, through(_AS_RELU, smoothed(0.01)), smoothed(0.01)]),
        story(KWinnersTakeAll), suspicious=True,
    ),
    Entry(
        "activation-pruning", "vgg-standard",
        around(partial(replace_relus, make=partial(ActivationPruning, 1.0)), "vgg-standard"),
        partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20), story(ActivationPruning), suspicious=True,
        randomized=True,
    ),
    Entry(
        "dropout-left-on", "vgg-adversarial", around(leave_dropout_on, "vgg-adversarial"),
        partial(attack_views, views=[ITSELF], steps=50, eot=10, samples=20), story(leave_dropout_on), suspicious=False,
        randomized=True,
    ),
)  # fmt: skip
