"""Detectors: classifiers that may reject an image instead of classifying it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audits.defenses.entry import Entry, Loader, story
from audits.defenses.references import attack_views, bypass, multi_targeted, through
from audits.defenses.shattered import Quantization
from audits.defenses.smoothing import Median
from pytest_gradmask import Composite, Defense


class FeatureSqueezing(nn.Module):
    """Rejects an image if its probabilities change when the image is squeezed. "Rejected" is one more class.

    Proposed by Xu, Evans and Qi ("Feature squeezing", NDSS 2018, arXiv:1704.01155): an image is squeezed by bit depth
    reduction and by a median filter, and rejected where the L1 distance of the probabilities is above a threshold for
    one of them. He et al. (WOOT 2017, arXiv:1706.04701) break it: they fool classifier and detector with one loss. Bit
    depth reduction hides its gradient, so that attacks on the detector that follow it do not see how to stay accepted.
    The reference attacks with the joint objective of classifier and detector (Carlini and Wagner 2017,
    arXiv:1705.07263), and BPDA with the identity for both squeezers or for the first of them.

    Returns logits of the classes and one of "rejected", N x (K + 1). The last is the largest class's, plus the distance
    above the threshold times a factor.

    Args:
        model: a classifier of K classes.
        threshold: of the L1 distance, in (0, 2).
        scale: logits for a distance of 1.
    """

    def __init__(self, model: nn.Module, threshold: float = 0.6, scale: float = 10.0) -> None:
        super().__init__()
        self.model, self.threshold, self.scale = model, threshold, scale
        self.depth, self.median = Quantization(bits=5), Median()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        probabilities = logits.softmax(1)
        distances = [
            (self.model(squeeze(images)).softmax(1) - probabilities).abs().sum(1)
            for squeeze in (self.depth, self.median)
        ]
        rejection = logits.amax(1) + self.scale * (torch.stack(distances).amax(0) - self.threshold)
        return torch.cat([logits, rejection[:, None]], 1)


def unsure(logits: Tensor, *, least: float = 0.5) -> Tensor:
    """A score above 0 where the largest probability is below ``least``. Maps logits, N x K, to N.

    Rejecting what a classifier is not sure of is the baseline of Hendrycks and Gimpel ("A baseline for detecting
    misclassified and out-of-distribution examples in neural networks", ICLR 2017, arXiv:1610.02136). Stutz, Hein and
    Schiele ("Confidence-calibrated adversarial training", ICML 2020, arXiv:1910.06259) use it against adversarial
    examples. Carlini and Wagner (2017, arXiv:1705.07263) fool classifier and detector with one loss. The score has a
    useful gradient. Around an undefended classifier it is a control.
    """
    return least - logits.softmax(1).amax(1)


def doubtful(logits: Tensor, *, least: float = 0.35) -> Tensor:
    """Whether the largest probability is below ``least``, without a score to follow. Maps logits, N x K, to bool, N.

    The decision of a detector as many services return it, around an adversarially trained classifier. An attack that
    knows only the decision cannot see how far an accepted example is. The reference follows the probability itself
    (Carlini and Wagner 2017, arXiv:1705.07263).
    """
    return unsure(logits, least=least) > 0


def _attack_score(defense: Defense, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    return attack_views(replace(defense, rejects=partial(unsure, least=0.35)), images, labels, **settings)


def _squeezing(load: Loader) -> Defense:
    return Defense(FeatureSqueezing(load("vgg-standard")), rejects=10)


def _unsure(load: Loader) -> Defense:
    return Defense(load("vgg-standard"), rejects=unsure)


def _doubtful(load: Loader) -> Defense:
    return Defense(load("vgg-mildly-adversarial"), rejects=doubtful)


def _rounded(load: Loader) -> Defense:
    return Defense(Composite(Quantization(), load("resnet-standard")).eval(), rejects=unsure)


_ROUNDED = """A detector of unsure answers around a classifier of images that are rounded to 3 bits.

As in feature squeezing (Xu, Evans and Qi, NDSS 2018, arXiv:1704.01155), bit depth reduction protects a classifier, and
answers with a low probability are rejected (Hendrycks and Gimpel, ICLR 2017, arXiv:1610.02136). The rounding hides the
gradient of the classifier and that of the detector. The reference uses BPDA with the identity (Athalye, Carlini and
Wagner 2018, arXiv:1802.00420) on the joint objective (Carlini and Wagner 2017, arXiv:1705.07263)."""

_ROUNDING = bypass(Quantization)

ENTRIES = (
    Entry(
        name="feature-squeezing",
        backbone="vgg-standard",
        build=_squeezing,
        reference=partial(
            attack_views, views=[through(bypass(Quantization), bypass(Median)), bypass(Quantization)], restarts=2
        ),
        story=story(FeatureSqueezing),
        suspicious=True,
    ),
    Entry(
        name="rounded-detector",
        backbone="resnet-standard",
        build=_rounded,
        reference=partial(attack_views, views=[bypass(Quantization)], restarts=2),
        story=_ROUNDED,
        suspicious=True,
    ),
    Entry(
        name="doubtful-detector",
        backbone="vgg-mildly-adversarial",
        build=_doubtful,
        reference=partial(_attack_score, losses=multi_targeted(10), steps=40),
        story=story(doubtful),
        suspicious=True,
        slow=True,
    ),
    Entry(
        name="unsure-detector",
        backbone="vgg-standard",
        build=_unsure,
        reference=partial(attack_views, restarts=2),
        story=story(unsure),
        suspicious=False,
    ),
)
