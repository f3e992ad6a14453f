"""Attacks that run once more for a report, which shows the images that they return. An audit keeps none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.auditing.bench import Bench
from pytest_gradmask.auditing.plan import plan_attacks
from pytest_gradmask.verdict.results import AttackResult


@dataclass(frozen=True, slots=True)
class Rerun:
    """One attack on all images that are classified correctly.

    Attributes:
        name: of the attack.
        result: scored as in audits.
        attacked: indices of the images.
        returned: the images that the attack returned for them; empty if there are none, or if it failed.
    """

    name: str
    result: AttackResult
    attacked: tuple[int, ...]
    returned: Tensor


def run_again(bench: Bench, name: str, indices: Sequence[int]) -> Rerun:
    """Run a planned attack with the budget of the bench."""
    planned = next(each for each in plan_attacks(bench.surface, bench.budget, quick=True) if each.name == name)
    returned: list[Tensor] = []

    def recorded(*arguments: Any, **keywords: Any) -> Tensor:
        returned.append(planned.run(*arguments, **keywords))
        return returned[-1]

    result = bench.scorer.run(replace(planned, run=recorded), indices)
    images = torch.cat(returned).detach() if returned and result.status == "done" else torch.empty(0)
    return Rerun(name, result, result.attacked, images)


def done(rerun: Rerun) -> AttackResult:
    """The result of a rerun.

    Raises:
        RuntimeError: the attack failed.
    """
    if rerun.result.status != "done":
        raise RuntimeError(f"{rerun.name} failed: {rerun.result.note}")
    return rerun.result
