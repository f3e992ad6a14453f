"""Claim 7: the same front end before classifiers of different robustness."""

from __future__ import annotations

import pytest

from audits.claims import not_reproduced
from audits.conftest import Reproduction
from audits.measures import Comparison, plain, share
from pytest_gradmask import load_model
from pytest_gradmask.plugin.fixtures import EvalBatch

pytestmark = [pytest.mark.gradmask, pytest.mark.slow]


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet",
        pytest.param("vgg", marks=not_reproduced("amplifies_masking[vgg]", "the bounds overlap a little")),
        "vit",
    ],
)
def test_adversarial_training_of_the_backbone_amplifies_masking(
    architecture: str, very_many_images: EvalBatch, reproduction: Reproduction
) -> None:
    """PGD breaks a smaller share of the correct images if the backbone is adversarially trained."""
    found = {
        training: Comparison.of(load_model(f"{architecture}-{training}-composite"), very_many_images)
        for training in ("standard", "adversarial")
    }
    retained = {training: share(comparison.pgd[comparison.clean]) for training, comparison in found.items()}
    reproduction.check(
        "7",
        holds=retained["adversarial"].low > retained["standard"].high,
        ours="; ".join(f"{architecture}-{training}: {comparison}" for training, comparison in found.items())
        + f"; PGD leaves {retained['standard']} of the clean accuracy before the standard backbone and "
        f"{retained['adversarial']} before the adversarially trained one",
        images=len(very_many_images.labels),
        details={
            "cells": [comparison.figures(f"{architecture}-{training}") for training, comparison in found.items()],
            "kept": plain(retained),
        },
    )
