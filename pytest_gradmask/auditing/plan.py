"""The attack plan: which attacks an audit runs on a defense, and which of them may wait for others."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from torch import Tensor

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.asked_once import asked_once
from pytest_gradmask.attacks.eot import on_average
from pytest_gradmask.attacks.losses import cross_entropy, dlr, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.plan_adaptive import adaptive_attacks
from pytest_gradmask.auditing.planned import PlannedAttack, Run, follow_gradient, gradient_steps
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.defense import Attack
from pytest_gradmask.errors import InputError

_QUICK_STEPS = 10
#: What looks robust against one of them may be weak against the other.
_LOSSES = (cross_entropy, logit_margin)
_NO_GRADIENT = "a plain function has no gradient"
_NO_BALL = "it needs a norm ball"
_NO_PICTURES = "it needs images N x C x H x W"


def plan_attacks(surface: AttackSurface, budget: Budget, *, quick: bool = False) -> list[PlannedAttack]:
    """All gradient and adaptive attacks. Those of a kind are in the order to run them.

    Args:
        surface: the defense as its attacker sees it.
        budget: how hard to try.
        quick: whether a short gradient attack comes first, and the others are deferred. Attacks that need many queries
            then give hopeless images up.

    Raises:
        InputError: a user's attack has the name of another.
    """
    user_attacks = [_user_attack(surface, attack) for attack in surface.defense.own_attacks()]
    first = [_quick_attack(surface)] if quick else []
    gradient, adaptive = _gradient_attacks(surface, budget), adaptive_attacks(surface, budget, quick=quick)
    taken = {attack.name for attack in (*first, *gradient, *adaptive)} | {"placebo"}
    for attack in user_attacks:
        if attack.name in taken:
            raise InputError(f"attacks: {attack.name!r} is the name of one that every audit runs; give it another")
    # After AutoAttack's attacks, whose figure they would change; before the adaptive ones, which may be skipped early.
    # The user's own are not deferred: who brings an attack wants to see what it does.
    planned = [*first, *(replace(each, deferred=quick) for each in gradient), *user_attacks, *adaptive]
    planned = [_where_possible(surface, attack) for attack in planned]
    for attack in planned:
        if attack.kind == "gradient":
            attack.model.first_state = None  # it asks one copy throughout, as if it knew nothing of a state
    return planned


def plan_placebo(surface: AttackSurface, budget: Budget, passes: int, *, turn: int = 0) -> PlannedAttack:
    """The placebo: a gradient attack with a fresh seed and the budget of the adaptive attacks.

    It shows what that budget breaks without adapting to the defense.

    Args:
        surface: the defense as its attacker sees it.
        budget: of the audit.
        passes: forward and backward passes that an unbroken image faced in the adaptive attacks. The placebo gets at
            least as many, in whole restarts. Adaptive attacks have either loss, and so its restarts take them in turn.
        turn: how often it has run before.
    """
    each = surface.eot * max(1, len(surface.defense.members))
    # Rounded up: a placebo with less than the adaptive attacks' budget makes mere extra budget look like masking.
    restarts = max(1, math.ceil(passes / (2 * each * (budget.apgd_steps + 1))))
    losses = _LOSSES if turn % 2 == 0 else _LOSSES[::-1]
    model = surface.oracle(surface.attacked)
    model.first_state = None  # as for every gradient attack
    return PlannedAttack(
        name="placebo",
        kind="placebo",
        access="gradient",
        run=partial(follow_gradient(surface, budget.apgd_steps), restarts=restarts, loss=losses),
        model=model,
        skip=_NO_GRADIENT if surface.black_box else "",
        cost=restarts * gradient_steps(surface, budget.apgd_steps),
    )


def _user_attack(surface: AttackSurface, attack: Attack) -> PlannedAttack:
    assert attack.access is not None
    return PlannedAttack(
        name=attack.name,
        kind=attack.kind,
        access=attack.access,
        run=partial(_counted, attack.run),
        model=surface.oracle(attack.through),
        by_user=True,
    )


def _where_possible(surface: AttackSurface, attack: PlannedAttack) -> PlannedAttack:
    """The attack, skipped where it cannot run. An adaptive one of the user's may try without a gradient, too."""
    follows = attack.access in ("gradient", "bypass") and not (attack.by_user and attack.kind == "adaptive")
    if surface.black_box and follows:
        return replace(attack, skip=_NO_GRADIENT, deferred=False)
    if not surface.norm_ball and (attack.autoattack or attack.name in ("arc", "rays")):
        return replace(attack, skip=_NO_BALL, deferred=False)
    if not surface.pictures and attack.name == "square":
        return replace(attack, skip=_NO_PICTURES)
    return attack


def _counted(run: Run, model: Oracle, *batch: Tensor, **arguments: object) -> Tensor:
    """What a user's attack returns, provided that it queried the model that it was given."""
    before = model.forwards
    returned = run(model, *batch, **arguments)
    if model.forwards == before:
        raise InputError(
            "it asked nothing of the model it was given, so its cost is unknown; query that model, or name "
            "another as Attack(through=...)"
        )
    return returned


def _quick_attack(surface: AttackSurface) -> PlannedAttack:
    # No deferred attack may follow, so its figure must be low itself. Where logits are small on noisy images, the other
    # losses lead to more noise; DLR does not depend on the scale.
    losses = (*_LOSSES, dlr) if surface.classes > 2 else _LOSSES
    # On a randomized defense one forward says little: it goes on to points that fool more often.
    stop_early = not surface.randomized
    run = partial(pgd, steps=_QUICK_STEPS, restarts=len(losses), loss=losses, stop_early=stop_early, eot=surface.eot)
    model = surface.oracle(surface.attacked)
    cost = gradient_steps(surface, len(losses) * _QUICK_STEPS)
    return PlannedAttack(name="pgd", kind="gradient", access="gradient", run=run, model=model, cost=cost)


def _gradient_attacks(surface: AttackSurface, budget: Budget) -> list[PlannedAttack]:
    eot = budget.eot if surface.randomized else 1
    targets = min(budget.targets, surface.classes - 1)
    runs: dict[str, Run] = {"apgd-ce": partial(autoattack.apgd_ce, steps=budget.apgd_steps, eot=eot)}
    # The targeted DLR loss compares four logits, the untargeted one three: fewer classes, fewer losses.
    if surface.classes == 3 or (surface.randomized and surface.classes > 3):
        runs["apgd-dlr"] = partial(autoattack.apgd_dlr, steps=budget.apgd_steps, eot=eot)
    if surface.classes > 3:
        runs["apgd-t"] = on_average(partial(autoattack.apgd_t, steps=budget.apgd_steps, targets=targets), eot)
    runs["fab-t"] = on_average(partial(autoattack.fab_t, steps=budget.fab_steps, targets=targets), eot)
    if not surface.randomized and surface.first_state is None:  # a stateful one may answer the same twice otherwise
        runs = {name: asked_once(run) for name, run in runs.items()}
    # A step of FAB looks at each class, and searches along a line.
    steps = {"apgd-ce": budget.apgd_steps, "apgd-dlr": budget.apgd_steps, "apgd-t": budget.apgd_steps * targets}
    steps["fab-t"] = 2 * budget.fab_steps * targets
    planned = [
        PlannedAttack(
            name=name,
            kind="gradient",
            access="gradient",
            run=run,
            model=surface.oracle(),
            autoattack=("standard", "rand") if name in ("apgd-ce", "apgd-dlr") else ("standard",),
            checked="always" if name == "apgd-ce" else "saturated" if name in ("apgd-t", "apgd-dlr") else "",
            # DLR compares three logits. Of two, the logit margin is what is left of it.
            as_checked=None if name == "apgd-ce" else partial(apgd, steps=budget.apgd_steps, loss=logit_margin),
            cost=3.0 * eot * steps[name],
            graphs=eot if name in ("apgd-t", "fab-t") else 1,
        )
        for name, run in runs.items()
    ]
    if surface.classes < 3 or not surface.norm_ball:
        # Where neither targeted APGD nor DLR can run, nothing else follows a loss that does not saturate.
        planned.append(
            PlannedAttack(
                name="apgd-margin", kind="gradient", access="gradient", checked="saturated",
                run=partial(follow_gradient(surface, budget.apgd_steps), loss=logit_margin),
                model=surface.oracle(surface.attacked), cost=gradient_steps(surface, budget.apgd_steps),
            )
        )  # fmt: skip
    if surface.randomized or not surface.norm_ball:
        # Upstream's EOT averages gradients, but keeps the iterate that fooled a single forward.
        run, name = follow_gradient(surface, budget.apgd_steps), "apgd-eot" if surface.randomized else "apgd"
        model = surface.oracle(surface.attacked)
        planned.append(
            PlannedAttack(
                name=name, kind="gradient", access="gradient", run=run, model=model, checked="always",
                cost=gradient_steps(surface, budget.apgd_steps),
            )
        )  # fmt: skip
    return planned
