"""Question B: which attacks transfer from one composite to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from audits.claims import not_reproduced
from audits.conftest import Reproduction
from audits.measures import PGD_STEPS, is_correct, plain
from pytest_gradmask import TransferMatrix, load_model, pgd, transfer_matrix
from pytest_gradmask.plugin.fixtures import EvalBatch

pytestmark = pytest.mark.gradmask

SAME = ("resnet-standard-composite", "resnet-standard-composite-b", "resnet-standard-composite-c")
DIVERSE = ("resnet-standard-composite", "vgg-standard-composite", "vit-standard-composite")
ROBUST = ("resnet-adversarial-composite", "vgg-adversarial-composite", "vit-adversarial-composite")


def measured(models: Mapping[str, nn.Module], batch: EvalBatch, *, bypass: bool) -> TransferMatrix:
    """Transfer of PGD-20, with or without bypassed front ends, on images that all models classify correctly."""
    clean = torch.stack([is_correct(model, *batch) for model in models.values()]).all(0)
    bypassed = ["front_end"] if bypass else None
    matrix = transfer_matrix(
        models, batch.images[clean], batch.labels[clean], attack=pgd, steps=PGD_STEPS, bypass=bypassed
    )
    assert not any(matrix.invalid)
    return matrix


def between(matrix: TransferMatrix, names: Sequence[str]) -> Tensor:
    """For each image, the share of ordered pairs of different models in which it transfers."""
    pairs = [matrix.fooled_images(source, target) for source in names for target in names if source != target]
    return torch.tensor([[image in fooled for fooled in pairs] for image in range(matrix.total)]).double().mean(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            "gradient",
            marks=not_reproduced("between_architectures[gradient]", "gradient attacks hardly transfer at all"),
        ),
        "bpda",
    ],
)
def test_attacks_transfer_less_between_architectures(
    attack: str, many_images: EvalBatch, reproduction: Reproduction
) -> None:
    """Adversarial images transfer more between composites of one backbone than between architectures."""
    names = dict.fromkeys((*SAME, *DIVERSE, *ROBUST))
    matrix = measured({name: load_model(name) for name in names}, many_images, bypass=attack == "bpda")
    same, diverse = between(matrix, SAME), between(matrix, DIVERSE)
    # Paired by image: pairs of models share images, so they are not independent observations.
    p = (
        float(wilcoxon(same.numpy(), diverse.numpy(), alternative="greater").pvalue)
        if bool((same != diverse).any())
        else 1.0
    )
    reproduction.check(
        "B",
        holds=p < 0.01,
        ours=f"{attack} attacks fool another composite of the same backbone in {same.mean():.1%} of cases, one of "
        f"another architecture in {diverse.mean():.1%} (Wilcoxon, paired by image, p = {p:.2g})",
        images=len(same),
        details={
            "attack": attack,
            "fooled": {source: plain({target: matrix.fooled(source, target) for target in names}) for source in names},
        },
    )
