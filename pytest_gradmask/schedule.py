"""In what order attacks run, on which images, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from pytest_gradmask.budgets import Budget
from pytest_gradmask.plan import PlannedAttack, Target, plan_attacks, plan_placebo
from pytest_gradmask.results import AttackResult, Votes
from pytest_gradmask.scoring import Evaluation

Progress = Callable[[str], None]
Certain = Callable[[Sequence[AttackResult]], bool]


def attack_in_turn(
    evaluation: Evaluation,
    target: Target,
    budget: Budget,
    standing: Collection[int],
    certain: Certain | None,
    progress: Progress,
) -> list[AttackResult]:
    """Run all attacks that can still change the verdict.

    Gradient attacks come first, each on the images that the ones before it left standing. Every adaptive attack
    and the placebo then get the images that survive all gradient attacks.

    Args:
        evaluation: runs and scores one attack.
        target: the defense as its attacker sees it.
        budget: how hard to try.
        standing: indices of the images to attack.
        certain: whether results, the placebo's included, settle that the defense masks; the adaptive attacks left
            are then spared. ``None`` runs them all.
        progress: called with a line of text before each attack.
    """
    planned = plan_attacks(target, budget)
    results: list[AttackResult] = []
    standing = set(standing)

    def run(attack: PlannedAttack, given: set[int]) -> AttackResult:
        progress(f"{attack.name} on {len(given)} of {len(evaluation.images)} images")
        return evaluation.run(attack, given)

    for attack in planned:
        if attack.kind == "gradient":
            results.append(run(attack, standing))
            standing = standing - results[-1].settled

    placebos: list[AttackResult] = []

    def top_up() -> AttackResult:
        """Give the placebo what all adaptive attacks so far have spent together, if it has not had it yet."""
        passes = sum(_passes(result) for result in results if result.kind == "adaptive")
        had = sum(_passes(result) for result in placebos)
        if not placebos:
            placebos.append(run(plan_placebo(target, budget, passes), standing))
        elif had < passes and placebos[-1].status == "done":
            # Another name, each time, draws other random starts.
            more = replace(plan_placebo(target, budget, passes - had), name=f"placebo after {had:.0f} passes")
            placebos.append(run(more, standing.difference(*(result.settled for result in placebos))))
        return _merged(placebos)

    adaptive = [attack for attack in planned if attack.kind == "adaptive"]
    for number, attack in enumerate(adaptive):
        results.append(run(attack, standing))
        if certain is None or attack is adaptive[-1]:
            continue
        rest = [_spared(left) for left in adaptive[number + 1 :]]
        # Worth the placebo's time only if a placebo that breaks nothing would settle it.
        if certain([*results, *rest, AttackResult("placebo", "placebo")]):
            placebo = top_up()
            if certain([*results, *rest, placebo]):
                return [*results, *rest, placebo]
    return [*results, top_up()]


def _passes(result: AttackResult) -> float:
    """Forward and backward passes an image."""
    return (result.forwards + result.backwards) / max(len(result.attacked), 1)


def _spared(attack: PlannedAttack) -> AttackResult:
    if attack.skip:
        return AttackResult(attack.name, attack.kind, status="skipped", note=attack.skip)
    return AttackResult(
        attack.name, attack.kind, status="spared", note="the verdict was certain", autoattack=attack.autoattack
    )


def _merged(runs: Sequence[AttackResult]) -> AttackResult:
    """One attack that went on in several runs, each on the images that the ones before left standing."""
    votes: dict[int, Votes] = {}
    for run in runs:
        votes |= {
            index: found for index, found in run.votes.items() if index not in votes or found.pilot < votes[index].pilot
        }
    return replace(
        runs[0],
        broken=tuple(sorted({index for run in runs for index in run.broken})),
        votes=votes,
        status=runs[-1].status,
        note=runs[-1].note,
        invalid=sum(run.invalid for run in runs),
        forwards=sum(run.forwards for run in runs),
        backwards=sum(run.backwards for run in runs),
        seconds=sum(run.seconds for run in runs),
    )
