"""Controls: weak or robust classifiers that do not mask. A detector that flags them is wrong."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from audits.defenses.entry import Entry, Loader, story
from audits.defenses.references import attack_views, multi_targeted

_UNDEFENDED = """A classifier trained without any defense, with label smoothing of 0.1.

Its gradient leads to adversarial examples (Szegedy et al. 2014, arXiv:1312.6199). It is weak, and it does not mask."""

_ADVERSARIAL = """Adversarial training by randomly started FGSM, at 8/255 or, mildly, at 4/255.

Madry et al. (ICLR 2018, arXiv:1706.06083) train with PGD. Athalye, Carlini and Wagner (ICML 2018, arXiv:1802.00420)
find no masked gradients in their defense. Wong, Rice and Kolter ("Fast is better than free", ICLR 2020,
arXiv:2001.03994) train with a single step. A model that overfits to this step ("catastrophic overfitting", Wong et al.)
masks, and PGD breaks it. PGD does not break these models. The truth about them is measured."""


class Average(nn.Module):
    """The mean of the logits of several classifiers.

    A deterministic ensemble whose members do not mask, so that it does not mask either. He et al. ("Adversarial example
    defenses: ensembles of weak defenses are not strong", WOOT 2017, arXiv:1706.04701) attack the sum, as any gradient
    attack does.
    """

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


_STRONG = partial(attack_views, losses=multi_targeted(10))


def _fixture(name: str, load: Loader) -> nn.Module:
    return load(name)


def _average(load: Loader) -> nn.Module:
    return Average(load("vgg-adversarial"), load("vgg-mildly-adversarial"))


ENTRIES = (
    *(
        Entry(
            name=f"undefended-{architecture}",
            backbone=f"{architecture}-standard",
            build=partial(_fixture, f"{architecture}-standard"),
            reference=attack_views,
            story=_UNDEFENDED,
            suspicious=False,
            slow=architecture != "vgg",
        )
        for architecture in ("resnet", "vgg", "vit")
    ),
    *(
        Entry(
            name=name,
            backbone=backbone,
            build=partial(_fixture, backbone),
            reference=_STRONG,
            story=_ADVERSARIAL,
            suspicious=False,
            slow=name != "adversarial-vgg",
        )
        for name, backbone in (
            ("adversarial-resnet", "resnet-adversarial"),
            ("adversarial-vgg", "vgg-adversarial"),
            ("mildly-adversarial-vgg", "vgg-mildly-adversarial"),
        )
    ),
    Entry(
        name="average",
        backbone="vgg-adversarial",
        build=_average,
        reference=_STRONG,
        story=story(Average),
        suspicious=False,
    ),
)
