"""Claim 6: the effect of learning rate and training length on clean accuracy and masking."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audits.conftest import Reproduction
from audits.measures import Comparison, discordant, share
from pytest_gradmask.auditing.research import available, load_checkpoint, mcnemar_p
from pytest_gradmask.plugin.fixtures import EvalBatch

pytestmark = [pytest.mark.gradmask, pytest.mark.slow]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RATES = ("1e-7", "1e-6", "1e-5", "1e-4", "1e-3")
#: Name in the checkpoint, and epochs over 5,085 images in batches of 32.
LENGTHS = {"1-half-epoch": 0.5, "2-one-epoch": 1.0, "3-two-epochs": 2.0, "4-five-epochs": 5.0}
#: Images of each class for the sweep. Its two ends are compared on all images.
OF_EACH = 10


def test_larger_learning_rates_and_longer_training_end_the_masking(
    very_many_images: EvalBatch, reproduction: Reproduction
) -> None:
    """The slowest and shortest training masks. The fastest and longest costs clean accuracy, and PGD succeeds."""
    labels, trained = very_many_images.labels, available(CHECKPOINTS)
    few = torch.cat([(labels == label).nonzero()[:OF_EACH, 0] for label in labels.unique()])
    some = EvalBatch(very_many_images.images[few], labels[few])
    ends = ((RATES[0], "1-half-epoch"), (RATES[-1], "4-five-epochs"))
    found = {
        (rate, length): Comparison.of(
            load_checkpoint(name, CHECKPOINTS), very_many_images if (rate, length) in ends else some
        )
        for rate in RATES
        for length in LENGTHS
        if (name := f"lr-{rate}-{length}") in trained
    }
    least, most = (found[end] for end in ends)
    lost, gained = discordant(least.clean, most.clean)
    p = mcnemar_p(lost, gained)  # exact and paired: both classify the same images
    reproduction.check(
        "6",
        holds=least.masked and p < 0.01 and (not most.masked or share(most.pgd).high < share(least.pgd).low),
        ours=f"{RATES[0]}, half an epoch: {least}; {RATES[-1]}, five epochs: {most}. The second misclassifies {lost} "
        f"images that the first does not, and the first {gained} that the second does not (p = {p:.2g}). The others of "
        f"the sweep: {len(few)} images",
        images=len(labels),
        details={
            "cells": [
                {"rate": rate, "epochs": LENGTHS[length], **cell.figures(f"{rate}, {LENGTHS[length]:g} epochs")}
                for (rate, length), cell in found.items()
            ]
        },
    )
