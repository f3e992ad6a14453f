"""Defenses that classify few images correctly, with and without a mask."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from audits.defenses.entry import Entry, behind, story
from audits.defenses.outputs import regroup
from audits.defenses.references import attack_views, bypass, multi_targeted
from audits.defenses.shattered import Quantization

_PERMUTED = """Images rounded to 3 bits, with labels in a wrong order.

Six of ten classes carry the label of the next one, as when folders are sorted in another order than in training. Half
of the images count as misclassified, and most of the others fall to BPDA only (`quantization` has the history of this
defense). Northcutt, Athalye and Mueller ("Pervasive label errors in test sets destabilize machine learning benchmarks",
NeurIPS 2021 Datasets and Benchmarks, arXiv:2103.14749) find wrong labels in most test sets. No audit can vouch for a
defense with such labels. The reference is BPDA with the identity, on the images that count as correct."""

_EXCHANGED = """An adversarially trained classifier, with the labels of three pairs of classes exchanged.

A control for `permuted-quantization`: it does not mask (see `adversarial-vgg`), and the labels are wrong in the same
way. An audit must not call it masked, nor vouch for it."""


class StrongBlur(nn.Module):
    """A Gaussian blur over 9 x 9 pixels, with a standard deviation of 1.1 pixels.

    It costs much of the clean accuracy of a classifier that was not trained with it, and its gradient is exact. It is a
    control: few images are classified correctly, and all of them fall to gradient attacks. Accuracies are
    shares of all images, so that a detector which compares them without regard to the clean accuracy sees small gaps
    only (Carlini et al., "On evaluating adversarial robustness", 2019, arXiv:1902.06705, ask for both).
    """

    def forward(self, images: Tensor) -> Tensor:
        return gaussian_blur(images, [9, 9], [1.1, 1.1])  # type: ignore[no-any-return]


#: Labels of six of CIFAR-10's classes in a wrong order, and three pairs of classes exchanged.
NEXT = (0, 1, 2, 3, 5, 6, 7, 8, 9, 4)
PAIRS = (9, 1, 2, 5, 7, 3, 6, 4, 8, 0)

ENTRIES = (
    Entry(
        name="permuted-quantization",
        backbone="resnet-standard",
        build=behind(Quantization, "resnet-standard"),
        reference=partial(attack_views, views=[bypass(Quantization)], restarts=2),
        story=_PERMUTED,
        suspicious=True,
        labels=partial(regroup, groups=NEXT),
        keeps=0.2,
        refused="permuted-labels",
    ),
    Entry(
        name="exchanged-labels",
        backbone="vgg-adversarial",
        build=lambda load: load("vgg-adversarial"),
        reference=partial(attack_views, losses=multi_targeted(10), steps=40),
        story=_EXCHANGED,
        suspicious=False,
        slow=True,
        labels=partial(regroup, groups=PAIRS),
        keeps=0.2,
        refused="permuted-labels",
    ),
    Entry(
        name="strong-blur",
        backbone="vgg-standard",
        build=behind(StrongBlur, "vgg-standard"),
        reference=attack_views,
        story=story(StrongBlur),
        suspicious=False,
        keeps=0.4,
    ),
)
