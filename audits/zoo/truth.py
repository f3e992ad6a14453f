"""The truth about a known defense, measured with the attack of its own literature.

A defense *masks* if that attack, the reference, which knows how the defense works, breaks more than a margin of the
images beyond the whole family of gradient attacks (AutoAttack's, with EOT where the defense is random) and their
placebo. What is said of the defense, and what an audit's own adaptive attacks find, does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from audits.defenses.entry import Entry
from pytest_gradmask import Defense, Verdict
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.auditing.plan import PlannedAttack
from pytest_gradmask.auditing.prepare import isolated
from pytest_gradmask.auditing.scoring import Scorer, subseed
from pytest_gradmask.auditing.surface import known_models
from pytest_gradmask.errors import DataError
from pytest_gradmask.randomized.prediction import plan_sampler
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import AttackResult, accuracy
from pytest_gradmask.verdict.rule import measure_gap


@dataclass(frozen=True, slots=True)
class Truth:
    """What was measured of one defense. Shares of all images come as ``[value, low, high]``, each bound valid at 99 %.

    Attributes:
        masked: whether the gap is above the margin.
        gap: images that the reference breaks and no gradient attack nor the placebo, minus those that only the
            placebo breaks.
        margin: a share of images.
        reference: robust accuracy under the reference alone.
        seconds: the reference took.
    """

    masked: bool
    gap: list[float]
    margin: float
    reference: list[float]
    seconds: float

    def expected(self, margin: float) -> Verdict | None:
        """The right verdict at a margin; None where the measured gap leaves it open."""
        _, low, high = self.gap
        if low > margin:
            return Verdict.MASKED
        return Verdict.NOT_MASKED if high <= margin else None


def measure_truth(
    entry: Entry,
    defense: Defense,
    images: torch.Tensor,
    labels: torch.Tensor,
    audit: Audit,
    *,
    threat: ThreatModel,
    pilot_samples: int,
    device: str,
    seed: int,
) -> Truth:
    """Run the reference on what an audit ran its gradient attacks on.

    Args:
        entry: whose reference.
        defense: what the entry built.
        images, labels: those of the audit; the labels are the defense's.
        audit: of the defense, with the whole gradient family and its placebo.
        pilot_samples: of the pilot, as in the audit.

    Raises:
        DataError: the reference raised or returned an image outside the ball, or a gradient attack did not run.
    """
    family, placebo = audit.of_kind("gradient"), audit.of_kind("placebo")
    failed = [result for result in (*family, *placebo) if result.status != "done"]
    if failed:
        raise DataError(
            f"{entry.name}: {failed[0].name} was {failed[0].status} ({failed[0].note}); without the whole gradient "
            "family there is no truth to store"
        )
    result = _reference(entry, defense, images, labels, audit, threat, pilot_samples, device, seed)
    gap = measure_gap(audit.clean, audit.predictions, [*family, *placebo, result], audit.confidence)
    assert gap is not None
    share = accuracy(audit.clean, audit.predictions, [result], audit.confidence)
    return Truth(
        gap.estimate > audit.margin, [gap.estimate, gap.low, gap.high], audit.margin,
        [share.value, share.low, share.high], round(result.seconds, 1),
    )  # fmt: skip


def _reference(
    entry: Entry,
    defense: Defense,
    images: torch.Tensor,
    labels: torch.Tensor,
    audit: Audit,
    threat: ThreatModel,
    pilot_samples: int,
    device: str,
    seed: int,
) -> AttackResult:
    """What the reference breaks, scored as an audit scores."""
    place = torch.device(device)
    models = known_models(defense)
    images, labels = images.to(place), labels.to(place)

    def run(_: Oracle, images: torch.Tensor, labels: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return entry.reference(defense, images, labels, **arguments)

    with isolated(models, place):
        look = Oracle(defense.model, RandomStream(subseed(seed, "truth"), place), defense.outputs)
        sampler = (
            plan_sampler(look, None, images, pilot=pilot_samples, margin=audit.margin)[0] if audit.predictions else None
        )
        scorer = Scorer(oracle=look, images=images, labels=labels, threat=threat, seed=seed, sampler=sampler)
        reference = PlannedAttack(name="reference", kind="adaptive", access="gradient", run=run, model=look)
        result = scorer.run(reference, audit.survivors([]))
    if result.status != "done" or result.invalid:
        why = result.note or f"{result.invalid} images outside the ball or the bounds"
        raise DataError(f"{entry.name}: its reference attack cannot be believed ({why}); mend it, then measure again")
    return result
