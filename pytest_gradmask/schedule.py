"""In what order attacks run, on which images, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_gradmask.budgets import Budget
from pytest_gradmask.plan import PlannedAttack, Target, plan_attacks, plan_placebo
from pytest_gradmask.results import AttackResult
from pytest_gradmask.scoring import Evaluation

Progress = Callable[[str], None]
Certain = Callable[[Sequence[AttackResult]], bool]


def attack_in_turn(
    evaluation: Evaluation,
    target: Target,
    budget: Budget,
    clean: Sequence[bool],
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
        clean: for each image, whether it is classified correctly without an attack.
        certain: whether results, the placebo's included, settle that the defense masks; the adaptive attacks left
            are then spared. ``None`` runs them all.
        progress: called with a line of text before each attack.
    """
    planned = plan_attacks(target, budget)
    results: list[AttackResult] = []
    standing = {index for index, correct in enumerate(clean) if correct}

    def run(attack: PlannedAttack, given: set[int]) -> AttackResult:
        progress(f"{attack.name} on {len(given)} of {len(clean)} images")
        return evaluation.run(attack, given)

    for attack in planned:
        if attack.kind == "gradient":
            results.append(run(attack, standing))
            standing = standing - set(results[-1].broken)

    placebo: AttackResult | None = None

    def top_up(placebo: AttackResult | None) -> AttackResult:
        """Give the placebo the budget of the costliest adaptive attack so far, if it has not had it yet."""
        passes = max((_passes(result) for result in results if result.kind == "adaptive"), default=0.0)
        if placebo is None:
            return run(plan_placebo(target, budget, passes), standing)
        more = plan_placebo(target, budget, passes - _passes(placebo))
        if placebo.status == "failed" or passes <= _passes(placebo):
            return placebo
        # Another name, each time, draws other random starts.
        name = f"placebo after {_passes(placebo):.0f} passes"
        second = run(replace(more, name=name), standing - set(placebo.broken))
        return _merged(placebo, second)

    adaptive = [attack for attack in planned if attack.kind == "adaptive"]
    for number, attack in enumerate(adaptive):
        results.append(run(attack, standing))
        if certain is None or attack is adaptive[-1]:
            continue
        rest = [_spared(left) for left in adaptive[number + 1 :]]
        # Worth the placebo's time only if a placebo that breaks nothing would settle it.
        if certain([*results, *rest, AttackResult("placebo", "placebo")]):
            placebo = top_up(placebo)
            if certain([*results, *rest, placebo]):
                return [*results, *rest, placebo]
    return [*results, top_up(placebo)]


def _passes(result: AttackResult) -> float:
    """Forward and backward passes an image."""
    return (result.forwards + result.backwards) / max(len(result.attacked), 1)


def _spared(attack: PlannedAttack) -> AttackResult:
    if attack.skip:
        return AttackResult(attack.name, attack.kind, status="skipped", note=attack.skip)
    return AttackResult(
        attack.name, attack.kind, status="spared", note="the verdict was certain", autoattack=attack.autoattack
    )


def _merged(first: AttackResult, second: AttackResult) -> AttackResult:
    return replace(
        first,
        broken=tuple(sorted({*first.broken, *second.broken})),
        status=second.status,
        note=second.note,
        invalid=first.invalid + second.invalid,
        forwards=first.forwards + second.forwards,
        backwards=first.backwards + second.backwards,
        seconds=first.seconds + second.seconds,
    )
