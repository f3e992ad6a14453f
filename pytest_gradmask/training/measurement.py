"""Measure a trained fixture: the accuracies in its card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.training.provenance import describe
from pytest_gradmask.verdict.stats import clopper_pearson

_BATCH = 125  # fixed, because the random numbers of the attack are drawn batch by batch
_PGD_STEPS, _PGD_SEED = 20, 0
_CONFIDENCE = 0.99


def measure(
    model: nn.Module, data: Dataset, device: str, *, bypass: Sequence[str] = (), pgd_images: int = 500
) -> dict[str, Any]:
    """Accuracy on clean images, and on the first ``pgd_images`` under PGD-20 with one restart at 8/255 (Linf).

    Args:
        model: moved to ``device``, and put into eval mode.
        data: test images.
        device: torch device.
        bypass: submodules that a second PGD-20 replaces by the identity on the backward pass (BPDA, Athalye et al.
            2018, arXiv:1802.00420).
        pgd_images: number of images to attack, at least 1. If there are fewer, all are attacked.

    Returns:
        The measured accuracies and the settings. Each of the two bounds of the clean accuracy holds with 99 %
        confidence by itself.
    """
    model = model.to(device).eval()
    clean, images = correct_clean(model, data, device), len(data)
    attacked = Dataset(data.images[:pgd_images], data.labels[:pgd_images], data.source)
    threat = ThreatModel()
    adaptive = (
        correct_under_pgd(model, attacked, threat, device, bypassed(model, dict.fromkeys(bypass))) if bypass else None
    )
    return {
        "data": describe(data),
        "images": images,
        "clean_accuracy": clean / images,
        "clean_bounds_99": clopper_pearson(clean, images, _CONFIDENCE),
        "pgd20_accuracy": correct_under_pgd(model, attacked, threat, device) / len(attacked),
        **({} if adaptive is None else {"bpda20_accuracy": adaptive / len(attacked)}),
        "pgd_images": len(attacked),
        "pgd_seed": _PGD_SEED,
        "eps": threat.eps,
        "norm": threat.norm,
    }


def correct_clean(model: nn.Module, data: Dataset, device: str) -> int:
    """Number of images that are classified correctly."""
    batches = zip(data.images.split(_BATCH), data.labels.split(_BATCH), strict=True)
    return sum(int(_correct(model, images.to(device), labels.to(device)).sum()) for images, labels in batches)


def correct_under_pgd(
    model: nn.Module, data: Dataset, threat: ThreatModel, device: str, source: nn.Module | None = None
) -> int:
    """Number of images that are correct before and after PGD-20 (Madry et al., arXiv:1706.06083) on ``source``."""
    generator = torch.Generator().manual_seed(_PGD_SEED)
    survivors = 0
    for cpu_images, cpu_labels in zip(data.images.split(_BATCH), data.labels.split(_BATCH), strict=True):
        images, labels = cpu_images.to(device), cpu_labels.to(device)
        found = pgd(source or model, images, labels, threat=threat, steps=_PGD_STEPS, generator=generator)
        # The model classifies the returned images again; only those inside the ball count.
        broken = threat.contains(found, images) & ~_correct(model, found, labels)
        survivors += int((_correct(model, images, labels) & ~broken).sum())
    return survivors


def _correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(images)).argmax(1) == labels
