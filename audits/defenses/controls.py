"""Controls: classifiers that hide nothing, weak or robust. A detector that flags them is worth nothing."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from audits.defenses.entry import Entry, Loader, story
from audits.defenses.references import attack_views, multi_targeted

_UNDEFENDED = """A classifier trained without a thought of attacks, though with label smoothing of 0.1.

Its gradient leads straight to adversarial examples (Szegedy et al. 2014): it is weak, which is not masked."""

_ADVERSARIAL = """Adversarial training by randomly started FGSM, at 8/255 or, mildly, at 4/255.

Madry et al. (ICLR 2018) train with PGD, and theirs is the one defense that Athalye, Carlini and Wagner (ICML 2018)
found to hide nothing. Wong, Rice and Kolter ("Fast is better than free", ICLR 2020) need one step for it. That form
can hide something: a model that overfits to the one step ("catastrophic overfitting", Wong et al.) masks. These hold
out against PGD, as such a model does not; what is true is measured."""


class Average(nn.Module):
    """The mean of the logits of several classifiers.

    A deterministic ensemble of honest members, as honest as they are. He et al. ("Adversarial example defenses:
    ensembles of weak defenses are not strong", WOOT 2017) attack the sum; so does any gradient attack.
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
            f"undefended-{architecture}", f"{architecture}-standard", partial(_fixture, f"{architecture}-standard"),
            attack_views, _UNDEFENDED, suspicious=False, slow=architecture != "vgg",
        )
        for architecture in ("resnet", "vgg", "vit")
    ),
    *(
        Entry(
            name, backbone, partial(_fixture, backbone), _STRONG, _ADVERSARIAL, suspicious=False,
            slow=name != "adversarial-vgg",
        )
        for name, backbone in (
            ("adversarial-resnet", "resnet-adversarial"),
            ("adversarial-vgg", "vgg-adversarial"),
            ("mildly-adversarial-vgg", "vgg-mildly-adversarial"),
        )
    ),
    Entry(
        "average", "vgg-adversarial", _average, _STRONG, story(Average), suspicious=False,
    ),
)  # fmt: skip
