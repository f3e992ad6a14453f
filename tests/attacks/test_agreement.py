"""Our attacks against upstream's on the trained fixtures: robust accuracies must agree."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pytest_gradmask import load_model
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.threat import ThreatModel

DATA = os.environ.get("GRADMASK_TEST_DATA")
STEPS, IMAGES, BATCH = 20, 500, 125
ATTACKS: dict[str, Callable[..., Tensor]] = {"upstream": autoattack.apgd_ce, "apgd": apgd, "pgd": pgd}


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="GRADMASK_TEST_DATA does not name an npz file of CIFAR-10")
@pytest.mark.parametrize("name", ["resnet-standard", "resnet-adversarial"])
def test_robust_accuracies_agree_with_upstream(name: str) -> None:
    data = load_dataset(f"npz:{DATA}", samples=IMAGES)
    model, threat = load_model(name), ThreatModel()
    robust = dict.fromkeys(ATTACKS, 0)
    for attack, run in ATTACKS.items():
        generator = torch.Generator().manual_seed(0)
        for images, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
            found = run(model, images, labels, threat=threat, steps=STEPS, generator=generator)
            with torch.no_grad():
                robust[attack] += int((logit_margin(model(found), labels) <= 0).sum())
    shares = {attack: count / IMAGES for attack, count in robust.items()}
    print(name, shares)
    assert abs(shares["apgd"] - shares["upstream"]) <= 0.02, shares
    assert abs(shares["pgd"] - shares["upstream"]) <= 0.02, shares
