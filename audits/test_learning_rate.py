"""Claim 6: the effect of learning rate and training length on clean accuracy and masking."""

from __future__ import annotations

from pathlib import Path

import pytest

from audits.claims import not_reproduced
from audits.conftest import Reproduction
from audits.measures import Comparison, share
from pytest_gradmask.auditing.research import available, load_checkpoint
from pytest_gradmask.plugin.fixtures import EvalBatch

pytestmark = [pytest.mark.gradmask, pytest.mark.slow]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RATES = ("1e-7", "1e-6", "1e-5", "1e-4", "1e-3")
#: Name in the checkpoint, and epochs over 5,085 images in batches of 32.
LENGTHS = {"1-half-epoch": 0.5, "2-one-epoch": 1.0, "3-two-epochs": 2.0, "4-five-epochs": 5.0}


@not_reproduced("test_larger_learning_rates", "the masking ends, but images are too few for a loss of clean accuracy")
def test_larger_learning_rates_and_longer_training_end_the_masking(
    many_images: EvalBatch, reproduction: Reproduction
) -> None:
    """The slowest and shortest training masks. The fastest and longest costs clean accuracy, and PGD succeeds."""
    trained = available(CHECKPOINTS)
    found = {
        (rate, length): Comparison.of(load_checkpoint(name, CHECKPOINTS), many_images)
        for rate in RATES
        for length in LENGTHS
        if (name := f"lr-{rate}-{length}") in trained
    }
    least, most = found[RATES[0], "1-half-epoch"], found[RATES[-1], "4-five-epochs"]
    costs = share(most.clean).high < share(least.clean).low
    ends = not most.masked or share(most.pgd).high < share(least.pgd).low
    reproduction.check(
        "6",
        holds=least.masked and costs and ends,
        ours=f"{RATES[0]}, half an epoch: {least}; {RATES[-1]}, five epochs: {most}",
        images=len(many_images.labels),
        details={
            "cells": [
                {"rate": rate, "epochs": LENGTHS[length], **cell.figures(f"{rate}, {LENGTHS[length]:g} epochs")}
                for (rate, length), cell in found.items()
            ]
        },
    )
