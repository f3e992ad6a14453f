"""Measurements for the paper's claims that need no whole audit: single attacks, their transfer, and summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask import Audit, Budget, Defense, Proportion, ThreatModel, bypassed, pgd
from pytest_gradmask.auditing.research import accuracy, bench, mcnemar_p
from pytest_gradmask.plugin.fixtures import EvalBatch

CONFIDENCE = 0.99
PGD_STEPS = 20
#: A deep front end needs much memory for its backward pass: 350 MB for an image of 224 x 224.
_PIXELS_AT_ONCE = 500_000


def adversarial(source: nn.Module, batch: EvalBatch, threat: ThreatModel | None = None) -> Tensor:
    """The images after PGD-20 with the gradient of ``source``, checked to be inside the ball (by default 8/255)."""
    threat = threat or ThreatModel()
    generator = torch.Generator().manual_seed(0)
    size = max(1, _PIXELS_AT_ONCE // batch.images[0, 0].numel())
    parts = zip(batch.images.split(size), batch.labels.split(size), strict=True)
    found = torch.cat([pgd(source, *part, threat=threat, steps=PGD_STEPS, generator=generator) for part in parts])
    assert bool(threat.contains(found, batch.images).all())
    return found


def is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """For each image, whether the model classifies it correctly."""
    with torch.no_grad():
        return torch.as_tensor(model(images)).argmax(1) == labels


def mean_change(front_end: nn.Module, images: Tensor) -> float:
    """By how much a front end changes a pixel, on average over all pixels and images."""
    with torch.no_grad():
        return float((front_end(images) - images).abs().mean())


def correct_under_attacks(
    model: nn.Module, sources: Mapping[str, nn.Module], batch: EvalBatch, threat: ThreatModel | None = None
) -> dict[str, Tensor]:
    """For each image, whether the model classifies it correctly without an attack ("clean") and after each attack.

    Args:
        model: what is attacked.
        sources: for each name of an attack, the model whose gradient PGD-20 uses; see `adversarial`.
        batch: images and labels.
        threat: where to search.
    """
    clean = is_correct(model, *batch)
    attacked = {name: adversarial(source, batch, threat) for name, source in sources.items()}
    return {"clean": clean} | {name: is_correct(model, found, batch.labels) & clean for name, found in attacked.items()}


def shares(outcomes: Mapping[str, Tensor]) -> dict[str, Proportion]:
    """The `share` of each."""
    return {name: share(each) for name, each in outcomes.items()}


def share(outcomes: Tensor) -> Proportion:
    """The share of images for which the outcome is true, with exact bounds."""
    return Proportion.of(int(outcomes.sum()), len(outcomes), CONFIDENCE)


def discordant(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Of two outcomes of the same images: for how many only the first is true, and for how many only the second."""
    return int((first & ~second).sum()), int((second & ~first).sum())


@dataclass(frozen=True, slots=True)
class Comparison:
    """PGD-20 with a composite's gradient, compared with PGD-20 with its front end bypassed (BPDA), on the same images.

    It is cheaper than an audit and serves sweeps over many composites. It gives no verdict, because it has no placebo.

    Attributes:
        clean, pgd, bpda: for each image, whether it is classified correctly without an attack and after each of them.
    """

    clean: Tensor
    pgd: Tensor
    bpda: Tensor

    @classmethod
    def of(cls, composite: nn.Module, batch: EvalBatch) -> Comparison:
        """Attack a composite whose front end is its submodule ``front_end``."""
        sources = {"pgd": composite, "bpda": bypassed(composite, {"front_end": None})}
        return cls(**correct_under_attacks(composite, sources, batch))

    @property
    def masked(self) -> bool:
        """BPDA breaks more images than PGD, by an exact paired test at 99 %, and by more than 5 percentage points."""
        only_bpda, only_pgd = discordant(self.pgd, self.bpda)
        return mcnemar_p(only_bpda, only_pgd) < 1 - CONFIDENCE and only_bpda - only_pgd > 0.05 * len(self.clean)

    @property
    def accuracies(self) -> dict[str, Proportion]:
        """The accuracy under each attack, by its name."""
        return {"clean": share(self.clean), "gradient": share(self.pgd), "bpda": share(self.bpda)}

    def figures(self, name: str) -> dict[str, Any]:
        """The comparison as plain data for tables and pictures, in the form of `figures`."""
        return {"defense": name, "masked": self.masked, "accuracies": plain(self.accuracies)}

    def __str__(self) -> str:
        outcome = "masked" if self.masked else "not masked"
        return f"{outcome}, clean {share(self.clean)}, PGD {share(self.pgd)}, BPDA {share(self.bpda)}"


def figures(audit: Audit) -> dict[str, Any]:
    """An audit as plain data for tables and pictures: its verdict, and each accuracy with its bounds."""
    done = [result.name for result in audit.attacks if result.status == "done"]
    accuracies = {
        "clean": audit.clean_accuracy,
        "gradient": audit.gradient_accuracy,
        **{name: audit.accuracy_under(name) for name in done},
        "all": audit.robust_accuracy,
    }
    if audit.autoattack_accuracy is not None:
        accuracies["autoattack"] = audit.autoattack_accuracy
    gap = audit.gap
    return {
        "defense": audit.defense,
        "verdict": audit.verdict.name,
        "gap": None if gap is None else [gap.estimate, gap.low, gap.high],
        "accuracies": plain(accuracies),
        "provenance": dict(audit.provenance),
        "seconds": round(audit.seconds, 1),
    }


def under_autoattack(defense: Defense, batch: EvalBatch, *, budget: Budget, seed: int) -> Proportion:
    """Robust accuracy under AutoAttack's attacks together, each on all images. Arguments are those of an audit."""
    with bench(defense, *batch, budget=budget, seed=seed, exhaustive=True) as prepared:
        attacks = [attack for attack in prepared.attacks.values() if "standard" in attack.autoattack]
        results = [prepared.run(attack, prepared.correct) for attack in attacks]
        return accuracy(prepared.clean, prepared.predictions, results, CONFIDENCE)


def plain(shares: Mapping[str, Proportion]) -> dict[str, list[float]]:
    """Proportions as ``[value, low, high]``."""
    return {name: [found.value, found.low, found.high] for name, found in shares.items()}


def listed(accuracies: Mapping[str, Proportion]) -> str:
    """Accuracies in one line of text."""
    return "; ".join(f"{name} {accuracy}" for name, accuracy in accuracies.items())


def summary(audit: Audit) -> str:
    """An audit in one line of text."""
    under = ", ".join(
        f"{result.name} {audit.accuracy_under(result.name)}"
        for result in audit.of_kind("adaptive")
        if result.status == "done"
    )
    return f"{audit.verdict.name}: clean {audit.clean_accuracy}, gradient attacks {audit.gradient_accuracy}, {under}"
