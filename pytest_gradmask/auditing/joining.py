"""Runs of attacks on several batches of images: as one result, and which attacks need not run on the next batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.auditing.scoring import empty_result
from pytest_gradmask.verdict.results import AttackResult, Prediction

#: Images on which guided attacks are compared, and how many of them attack the batches that follow.
_COMPARED, _BEST = 8, 2
#: Why an attack does not run any more.
OUTDONE = "two others together broke at least as many of the first images"


def outdone_by_others(planned: Sequence[PlannedAttack], earlier: Sequence[AttackResult]) -> set[str]:
    """Names of guided adaptive attacks that need not attack the next batch, by what they broke in those before.

    The choice uses no image of the next batch, so it cannot bias what is found there. Attacks of the user's, and those
    that failed, are never left out.

    Args:
        planned: the attacks of an audit, in order.
        earlier: their runs.
    """
    guided = [each for each in planned if each.kind == "adaptive" and not (each.queries or each.skip or each.by_user)]
    results = {each.name: joined([run for run in earlier if run.name == each.name]) for each in guided}
    left = {name: result for name, result in results.items() if result is not None and result.status == "done"}
    if any(len(result.attacked) < _COMPARED for result in left.values()):
        return set()
    broken = set[int]()
    for _ in range(min(_BEST, len(left))):
        best = max(left, key=lambda name: len({*left[name].broken} - broken))  # of equals, the first in the plan
        broken |= {*left.pop(best).broken}
    return {*left}


def skipped_early(attack: PlannedAttack) -> AttackResult:
    """The result of an attack that did not run: it cannot, or the verdict was decided before."""
    if attack.skip:
        return replace(empty_result(attack), status="skipped", note=attack.skip, autoattack=())
    return replace(empty_result(attack), status="skipped-early", note="the verdict was decided")


def joined(runs: Sequence[AttackResult], batches: int = 0) -> AttackResult | None:
    """Several runs of one attack as one; None if there is none.

    Args:
        runs: of any images. Where two share an image, the later one attacked it again.
        batches: how many it was to attack. In those without a run it was skipped early.
    """
    if not runs:
        return None
    predictions: dict[int, Prediction] = {}
    for run in runs:
        predictions |= {
            index: prediction
            for index, prediction in run.predictions.items()
            if index not in predictions or prediction.pilot < predictions[index].pilot
        }
    done = [run for run in runs if run.status == "done"]
    example = next((run for run in runs if run.status == "failed"), (done or runs)[-1])
    skipped = "in the last batch the verdict was decided without it" if len(runs) < batches else ""
    skipped = next((run.note for run in runs if run.status == "skipped-early"), skipped)
    return replace(
        example,
        attacked=_union(run.attacked for run in runs),
        broken=_union(run.broken for run in runs),
        predictions=predictions,
        note=example.note or skipped,
        invalid=sum(run.invalid for run in runs),
        rejected=sum(run.rejected for run in runs),
        forwards=sum(run.forwards for run in runs),
        backwards=sum(run.backwards for run in runs),
        passes=max(run.passes for run in runs),
        seconds=sum(run.seconds for run in runs),
    )


def _union(indices: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(sorted({index for some in indices for index in some}))
