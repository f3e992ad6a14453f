"""What the audits of the paper's claims measure beside whole audits: single attacks, their transfer, and summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask import Audit, Proportion, ThreatModel, bypassed, pgd
from pytest_gradmask.auditing.research import mcnemar_p
from pytest_gradmask.plugin.fixtures import EvalBatch

CONFIDENCE = 0.99
PGD_STEPS = 20
#: A deep front end keeps much for its backward pass: 350 MB for an image of 224 x 224.
_PIXELS_AT_ONCE = 500_000


def adversarial(source: nn.Module, batch: EvalBatch, threat: ThreatModel | None = None) -> Tensor:
    """What PGD-20 makes of the images with the gradient of ``source``, checked to be inside the ball (8/255)."""
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


def standing(
    model: nn.Module, sources: Mapping[str, nn.Module], batch: EvalBatch, threat: ThreatModel | None = None
) -> dict[str, Tensor]:
    """For each image, whether the model classifies it correctly ("clean"), and whether it still does after an attack.

    Args:
        model: what is attacked.
        sources: by the name of the attack, the model whose gradient PGD-20 takes; see `adversarial`.
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
    """The share of images that are true, with exact bounds."""
    return Proportion.of(int(outcomes.sum()), len(outcomes), CONFIDENCE)


@dataclass(frozen=True, slots=True)
class Comparison:
    """PGD-20 with a composite's own gradient against the same with its front end bypassed (BPDA), on the same images.

    Cheaper than an audit, for sweeps over many composites, and no verdict: only an audit has a placebo.

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
        return cls(**standing(composite, sources, batch))

    @property
    def masked(self) -> bool:
        """BPDA breaks more images than PGD, by an exact paired test at 99 %, and by more than 5 points."""
        ours, theirs = int((self.pgd & ~self.bpda).sum()), int((self.bpda & ~self.pgd).sum())
        return mcnemar_p(ours, theirs) < 1 - CONFIDENCE and ours - theirs > 0.05 * len(self.clean)

    @property
    def accuracies(self) -> dict[str, Proportion]:
        """By the name of the attack."""
        return {"clean": share(self.clean), "gradient": share(self.pgd), "bpda": share(self.bpda)}

    def figures(self, name: str) -> dict[str, Any]:
        """For tables and pictures, as `figures` of an audit."""
        return {"defense": name, "masked": self.masked, "accuracies": plain(self.accuracies)}

    def __str__(self) -> str:
        said = "masked" if self.masked else "not masked"
        return f"{said}, clean {share(self.clean)}, PGD {share(self.pgd)}, BPDA {share(self.bpda)}"


def figures(audit: Audit) -> dict[str, Any]:
    """An audit for tables and pictures: verdict, and count, bounds and total of each accuracy."""
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


def plain(shares: Mapping[str, Proportion]) -> dict[str, list[float]]:
    """Proportions as ``[value, low, high]``."""
    return {name: [found.value, found.low, found.high] for name, found in shares.items()}


def listed(accuracies: Mapping[str, Proportion]) -> str:
    """Accuracies in a line."""
    return "; ".join(f"{name} {accuracy}" for name, accuracy in accuracies.items())


def told(audit: Audit) -> str:
    """An audit in a line."""
    under = ", ".join(
        f"{result.name} {audit.accuracy_under(result.name)}"
        for result in audit.of_kind("adaptive")
        if result.status == "done"
    )
    return f"{audit.verdict.name}: clean {audit.clean_accuracy}, gradient attacks {audit.gradient_accuracy}, {under}"
