"""A mask that only some images have: the searches look at a few images, and these may not be among them."""

from __future__ import annotations

from functools import partial

from pytest_gradmask.auditing.prepare import Prepared
from pytest_gradmask.auditing.schedule import AttackSchedule
from pytest_gradmask.auditing.surface import hidden_elsewhere, searched
from pytest_gradmask.verdict.results import Finding


def masked_elsewhere(ready: Prepared, schedule: AttackSchedule, findings: list[Finding]) -> tuple[int, ...]:
    """Images that nothing broke, and at which operations hide the gradient that no attack bypassed; their indices.

    Only they can hide a masking gap. It takes a gradient or two of each.

    Args:
        ready: the defense as it was attacked.
        schedule: with the results of all attacks.
        findings: gets another one where the search raises.
    """
    results, scorer = schedule.results(), ready.scorer
    broken = set[int]().union(*(result.broken for result in results))
    left = [index for index, correct in enumerate(schedule.clean) if correct and index not in broken]
    if not left:
        return ()
    search = partial(hidden_elsewhere, ready.surface, scorer.images[left], scorer.threat)
    hidden = searched("operations that hide the gradient at other images", search, findings)
    return () if hidden is None else tuple(left[position] for position in hidden.nonzero()[:, 0].tolist())
