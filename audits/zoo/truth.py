"""The truth about a known defense, measured with the attack of its own literature.

This attack is called the reference. It knows how the defense works. A defense *masks* if the reference breaks more
images than the gradient attacks and their placebo together, by more than a margin (a share of all images). The gradient
attacks are AutoAttack's, with EOT where the defense is random. Published claims and the audit's own adaptive attacks do
not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audits.defenses.entry import Entry
from pytest_gradmask import AttackResult, Audit, DataError, Defense, ThreatModel, Verdict
from pytest_gradmask.auditing.research import (
    Oracle,
    PlannedAttack,
    RandomStream,
    RejectOption,
    Scorer,
    accuracy,
    isolated,
    known_models,
    measure_gap,
    plan_sampler,
    subseed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The truth about one defense. Shares of all images are ``[value, low, high]``, each bound valid at 99 %.

    Attributes:
        masked: whether the gap is above the margin.
        gap: the share of images that only the reference breaks, minus the share that only the placebo breaks. Images
            that a gradient attack breaks do not count.
        margin: a share of images.
        reference: robust accuracy under the reference alone.
        seconds: wall-clock time of the reference.
    """

    masked: bool
    gap: list[float]
    margin: float
    reference: list[float]
    seconds: float

    def expected(self, margin: float) -> Verdict | None:
        """The correct verdict at a margin, or None if the bounds of the gap leave it open."""
        _, low, high = self.gap
        if low > margin:
            return Verdict.MASKED
        return Verdict.NOT_MASKED if high <= margin else None


def right_verdicts(expected: Verdict | None, *, refused: bool) -> set[Verdict]:
    """The verdicts that are not wrong.

    Args:
        expected: by the measured truth (`Truth.expected`).
        refused: whether a finding has to refuse a pass (`Entry.refused`).
    """
    right = {Verdict.INCONCLUSIVE, *([expected] if expected else Verdict)}
    return right - {Verdict.NOT_MASKED} if refused else right


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedDefense:
    """A known defense with its audit, and the settings of the audit.

    Attributes:
        entry: of the zoo; it holds the reference.
        defense: the defense that the entry built.
        images: all images of the audit: float32, N x C x H x W.
        labels: int64, N, of the defense.
        audit: an exhaustive audit of the defense.
        threat: the threat model of the audit.
        pilot_samples: forwards of the pilot of a randomized defense.
        device: torch device.
        seed: of every random choice.
    """

    entry: Entry
    defense: Defense
    images: Tensor
    labels: Tensor
    audit: Audit
    threat: ThreatModel
    pilot_samples: int
    device: str = "cpu"
    seed: int = 0


def measure_truth(case: AuditedDefense) -> Truth:
    """Run the reference on the images of an audit, and compare it with the audit's gradient attacks and placebo.

    Raises:
        DataError: the reference raised or returned an image outside the ball, or a gradient attack did not run.
    """
    audit = case.audit
    family, placebo = audit.of_kind("gradient"), audit.of_kind("placebo")
    failed = [result for result in (*family, *placebo) if result.status != "done"]
    if failed:
        raise DataError(
            f"{case.entry.name}: {failed[0].name} was {failed[0].status} ({failed[0].note}); the truth needs all "
            "gradient attacks and the placebo"
        )
    result = _reference(case)
    gap = measure_gap(audit.clean, audit.predictions, [*family, *placebo, result], audit.confidence)
    assert gap is not None
    share = accuracy(audit.clean, audit.predictions, [result], audit.confidence)
    return Truth(
        masked=gap.estimate > audit.margin,
        gap=[gap.estimate, gap.low, gap.high],
        margin=audit.margin,
        reference=[share.value, share.low, share.high],
        seconds=round(result.seconds, 1),
    )


def _reference(case: AuditedDefense) -> AttackResult:
    """Run the reference and score it as an audit does."""
    defense, audit, device = case.defense, case.audit, torch.device(case.device)
    images, labels = case.images.to(device), case.labels.to(device)

    def run(_: Oracle, images: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        return case.entry.reference(defense, images, labels, **arguments)

    with isolated(known_models(defense), device):
        rejection = None if defense.rejects is None else RejectOption(defense.rejects)
        stream = RandomStream(subseed(case.seed, "truth"), device)
        oracle = Oracle(defense.model, stream, defense.outputs, rejection=rejection)
        sampler = None
        if audit.predictions:
            sampler, _ = plan_sampler(oracle, None, images, pilot=case.pilot_samples, margin=audit.margin)
        scorer = Scorer(
            oracle=oracle, images=images, labels=labels, threat=case.threat, seed=case.seed, sampler=sampler
        )
        reference = PlannedAttack(name="reference", kind="adaptive", access="gradient", run=run, model=oracle)
        result = scorer.run(reference, audit.survivors([]))
    if result.status != "done" or result.invalid:
        why = result.note or f"{result.invalid} images outside the ball or the bounds"
        raise DataError(f"{case.entry.name}: its reference attack cannot be trusted ({why}); correct it first")
    return result
