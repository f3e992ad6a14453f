"""Robust accuracy against eps and against the iterations of an attack, on few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.auditing.bench import Bench
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.plan import plan_attacks
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import AttackResult, accuracy

#: Attacks run at these multiples of the audit's eps, and of the budget's iterations. The rerun is the multiple 1.
_EPS = (0.25, 0.5, 1.0, 2.0, 4.0)
_BUDGETS = (0.25, 0.5, 1.0, 2.0)
#: Largest number of forward and backward passes for all points beyond the reruns. It limits the number of images.
_PASSES = {"cpu": 2500, "cuda": 25_000}
_FEWEST = 6
_CONFIDENCE = 0.99
_SCALED = ("apgd_steps", "fab_steps", "square_queries", "bpda_steps", "zero_order_steps")


@dataclass(frozen=True, slots=True)
class Rerun:
    """One attack on all images that are classified correctly, with the budget unchanged.

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


def run_again(
    bench: Bench, name: str, indices: Sequence[int], *, eps: float = 1.0, budget: float = 1.0, stream_name: str = ""
) -> Rerun:
    """Run a planned attack with these multiples of the threat model's eps and of the budget's iterations."""
    planned = next(
        each for each in plan_attacks(bench.surface, _scaled(bench.budget, budget), quick=True) if each.name == name
    )
    returned: list[Tensor] = []

    def recorded(*arguments: Any, **keywords: Any) -> Tensor:
        returned.append(planned.run(*arguments, **keywords))
        return returned[-1]

    threat = bench.scorer.threat
    if isinstance(threat, ThreatModel):
        threat = replace(threat, eps=eps * threat.eps)
    scorer = replace(bench.scorer, threat=threat)
    result = scorer.run(replace(planned, run=recorded), indices, stream_name)
    images = torch.cat(returned).detach() if returned and result.status == "done" else torch.empty(0)
    return Rerun(name, result, result.attacked, images)


def curves(bench: Bench, reruns: Sequence[Rerun], sample: int) -> dict[str, Any]:
    """Robust accuracy under each attack alone, at several eps and budgets.

    A larger ball contains the smaller ones. So an image that is broken at one eps counts as broken at every larger eps.
    Each budget is measured on its own.

    Args:
        bench: with the images.
        reruns: one for each attack.
        sample: so many of the images, from the first on, are a random sample. At most these are used.
    """
    if not isinstance(bench.scorer.threat, ThreatModel):
        raise RuntimeError("the set has one size")
    passes = sum(_passes(rerun.result) for rerun in reruns)
    device = bench.scorer.images.device.type
    points = len(_EPS) - 1 + sum(_BUDGETS) - 1
    count = min(sample, max(_FEWEST, int(_PASSES.get(device, 2500) / max(points * passes, 1))))
    threat = bench.scorer.threat
    widest = threat.bounds[1] - threat.bounds[0] if threat.norm == "Linf" else float("inf")
    shares = [share for share in _EPS if share * threat.eps <= widest]
    return {
        "images": count,
        "confidence": _CONFIDENCE,
        "eps": threat.eps,
        "clean": _share(bench, [], count),
        "attacks": [
            {
                "name": rerun.name,
                "kind": rerun.result.kind,
                "error": rerun.result.note if rerun.result.status != "done" else "",
                **(_points(bench, rerun, shares, count, threat) if rerun.result.status == "done" else {}),
            }
            for rerun in reruns
        ],
    }


def _points(bench: Bench, rerun: Rerun, shares: Sequence[float], count: int, threat: ThreatModel) -> dict[str, Any]:
    attacked = {index for index in rerun.attacked if index < count}
    unchanged = _restricted(rerun.result, attacked)
    so_far: list[AttackResult] = []
    by_eps, by_budget = [], []
    for share in shares:
        if share == 1:
            so_far.append(unchanged)
        else:
            active = attacked.difference(*(result.decided for result in so_far))
            so_far.append(done(run_again(bench, rerun.name, sorted(active), eps=share, stream_name=f" at {share} eps")))
        by_eps.append({"eps": share * threat.eps, **_share(bench, so_far, count)})
    for share in _BUDGETS:
        result = unchanged if share == 1 else done(run_again(bench, rerun.name, sorted(attacked), budget=share))
        by_budget.append({"share": share, "passes": round(_passes(result), 1), **_share(bench, [result], count)})
    return {"by_eps": by_eps, "by_budget": by_budget}


def _scaled(budget: Budget, share: float) -> Budget:
    steps = {name: max(1, round(share * getattr(budget, name))) for name in _SCALED}
    return replace(budget, **steps)


def done(rerun: Rerun) -> AttackResult:
    """The result of a rerun.

    Raises:
        RuntimeError: the attack failed.
    """
    if rerun.result.status != "done":
        raise RuntimeError(f"{rerun.name} failed: {rerun.result.note}")
    return rerun.result


def _restricted(result: AttackResult, indices: set[int]) -> AttackResult:
    return replace(
        result,
        broken=tuple(index for index in result.broken if index in indices),
        predictions={index: found for index, found in result.predictions.items() if index in indices},
    )


def _share(bench: Bench, results: Sequence[AttackResult], count: int) -> dict[str, float]:
    predictions = {index: found for index, found in bench.predictions.items() if index < count}
    share = accuracy(bench.clean[:count], predictions, results, _CONFIDENCE)
    return {"value": share.value, "low": share.low, "high": share.high}


def _passes(result: AttackResult) -> float:
    """Forward and backward passes for each image."""
    return (result.forwards + result.backwards) / max(len(result.attacked), 1)
