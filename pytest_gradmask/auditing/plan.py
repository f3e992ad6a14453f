"""The attack plan: which attacks an audit runs on a defense, and which of them may wait for others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.asked_once import asked_once
from pytest_gradmask.attacks.bypass.bpda import bypassed, removed
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits
from pytest_gradmask.attacks.bypass.operations.search import scripted_parts
from pytest_gradmask.attacks.decision import rays
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.eot import on_average
from pytest_gradmask.attacks.hopeless import hopeless, never
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.defense import Attack
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import Access
from pytest_gradmask.verdict.results import AutoAttackVersion, Kind

Run = Callable[..., Tensor]

#: Name of operation-level BPDA.
OPERATIONS = "bpda-operations"
_QUICK_STEPS = 10
_NO_GRADIENT = "a plain function has no gradient"
_NO_BALL = "it needs a norm ball"
_NO_PICTURES = "it needs images N x C x H x W"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAttack:
    """One attack, ready to run.

    Attributes:
        name: unique within the plan.
        kind: its family.
        access: what it sees of the defense.
        run: ``run(model, images, labels, threat=, generator=)`` returns the perturbed images.
        model: what it queries; its counters belong to this attack alone.
        autoattack: versions of AutoAttack that it is part of.
        by_user: whether it is an attack of the user's.
        checked: when the attack check may test it: always, only where the softmax saturates, or (empty) never.
        as_checked: what it runs in place of ``run`` there, where the last layer has two classes; None: the same.
        deferred: whether it waits until adaptive attacks and placebo have run, and then gets only the images that one
            of both sides alone has broken. On all others it cannot change the masking gap.
        skip: if not empty, why it cannot run on this defense.
        cost: about how many forwards an image takes that nothing breaks. A backward counts as two. 0 if unknown.
        graphs: how many graphs of the defense it holds in memory at once.
    """

    name: str
    kind: Kind
    access: Access
    run: Run
    model: Oracle
    autoattack: tuple[AutoAttackVersion, ...] = ()
    by_user: bool = False
    checked: Literal["", "always", "saturated"] = ""
    as_checked: Run | None = None
    deferred: bool = False
    skip: str = ""
    cost: float = 0.0
    graphs: int = 1

    @property
    def queries(self) -> bool:
        """Whether it follows no gradient, and so needs many forwards. Attacks of the user's do not wait for others."""
        return self.access in ("scores", "labels") and not self.by_user


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
    gradient, adaptive = _gradient_attacks(surface, budget), _adaptive_attacks(surface, budget, quick=quick)
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


def plan_placebo(surface: AttackSurface, budget: Budget, passes: int) -> PlannedAttack:
    """The placebo: a gradient attack with a fresh seed and the budget of the adaptive attacks.

    It shows what that budget breaks without adapting to the defense.

    Args:
        surface: the defense as its attacker sees it.
        budget: of the audit.
        passes: forward and backward passes that an unbroken image faced in the adaptive attacks. The placebo gets at
            least as many, in whole restarts.
    """
    each = surface.eot * max(1, len(surface.defense.members))
    # Rounded up: a placebo with less than the adaptive attacks' budget makes mere extra budget look like masking.
    restarts = max(1, math.ceil(passes / (2 * each * (budget.apgd_steps + 1))))
    model = surface.oracle(surface.attacked)
    model.first_state = None  # as for every gradient attack
    return PlannedAttack(
        name="placebo",
        kind="placebo",
        access="gradient",
        run=partial(_apgd(surface, budget.apgd_steps), restarts=restarts),
        model=model,
        skip=_NO_GRADIENT if surface.black_box else "",
        cost=restarts * _gradient_steps(surface, budget.apgd_steps),
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


def _gradient_steps(surface: AttackSurface, steps: int) -> float:
    """The cost of so many steps: each is a forward and a backward of every member, averaged over forwards."""
    return 3.0 * steps * surface.eot * max(1, len(surface.defense.members))


def _apgd(surface: AttackSurface, steps: int) -> Run:
    """APGD; on a randomized defense with EOT, and then without stopping at the first success of a single draw."""
    return partial(apgd, steps=steps, eot=surface.eot, stop_early=surface.eot == 1)


def _quick_attack(surface: AttackSurface) -> PlannedAttack:
    # On a randomized defense one forward says little: it goes on to points that fool more often.
    run = partial(pgd, steps=_QUICK_STEPS, stop_early=not surface.randomized, eot=surface.eot)
    model = surface.oracle(surface.attacked)
    cost = _gradient_steps(surface, _QUICK_STEPS)
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
    if surface.randomized or not surface.norm_ball:
        # Upstream's EOT averages gradients, but keeps the iterate that fooled a single forward.
        run, name = _apgd(surface, budget.apgd_steps), "apgd-eot" if surface.randomized else "apgd"
        model = surface.oracle(surface.attacked)
        planned.append(
            PlannedAttack(
                name=name, kind="gradient", access="gradient", run=run, model=model, checked="always",
                cost=_gradient_steps(surface, budget.apgd_steps),
            )
        )  # fmt: skip
    return planned


def _adaptive_attacks(surface: AttackSurface, budget: Budget, *, quick: bool) -> list[PlannedAttack]:
    follow = _apgd(surface, budget.bpda_steps)
    skip = "" if surface.approximations else "no submodule to bypass was given or found"
    through: Access = "bypass" if surface.approximations else "gradient"
    around = surface.rewired(bypassed)

    cost = _gradient_steps(surface, budget.bpda_steps)

    def adaptive(name: str, access: Access, run: Run, model: Oracle, skip: str = "", **more: Any) -> PlannedAttack:
        more = {"cost": cost, **more}
        return PlannedAttack(name=name, kind="adaptive", access=access, run=run, model=model, skip=skip, **more)

    backbone = surface.oracle(surface.rewired(removed))
    transfer = partial(follow, stop_early=False)
    planned = [  # inner classifiers first: their passes are cheap, and what they break often decides
        *(
            adaptive(f"transfer-inner-{number}", "surrogate", transfer, surface.inner_oracle(inner))
            for number, inner in enumerate(surface.inner_classifiers)
        ),
        adaptive("bpda", "bypass", follow, surface.oracle(around), skip, checked="always"),
        adaptive("transfer-backbone", "surrogate", transfer, backbone, skip),
    ]
    if surface.operations:
        model = surface.oracle(surface.with_operations_bypassed())
        # Each operation is watched, which takes time.
        planned.insert(0, adaptive(OPERATIONS, "bypass", follow, model, checked="always", cost=1.5 * cost))
    elif scripted := scripted_parts(surface.attacked):
        reason = f"{', '.join(scripted)}: TorchScript, whose operations cannot be watched"
        planned.insert(0, adaptive(OPERATIONS, "bypass", follow, surface.oracle(), reason))
    if surface.first_state is not None:
        # The gradient of the defense, as a fresh copy gives it: an attacker with a copy can reset it before each query.
        planned.insert(0, adaptive("apgd-fresh", "gradient", follow, surface.oracle(surface.attacked)))
    if surface.inner:
        inside = InnerLogits(around, f"model.{surface.inner}")
        run = partial(follow, loss=logit_margin)
        planned.append(adaptive("inner-logits", "bypass", run, surface.inner_oracle(inside)))
    if surface.randomized and surface.defense.members:
        on_members: dict[str, Run] = {
            "bpda-members": partial(member_by_member, steps=budget.bpda_steps),
            "joint-margins": partial(follow, loss=joint_margins),
            "arc": partial(arc, steps=max(1, budget.bpda_steps // 2)),
        }
        planned += [adaptive(name, through, run, surface.oracle(around)) for name, run in on_members.items()]
    for number, source in enumerate(surface.defense.sources):
        planned.append(adaptive(f"transfer-source-{number}", "surrogate", transfer, surface.source_oracle(source)))
    return [*planned, *_black_box_attacks(surface, budget, quick=quick)]


def _black_box_attacks(surface: AttackSurface, budget: Budget, *, quick: bool) -> list[PlannedAttack]:
    eot = budget.eot if surface.randomized else 1
    # As many forwards as on a deterministic defense: fewer queries, each judged by the mean of several forwards.
    steps = max(1, budget.square_queries // eot)
    square = on_average(partial(autoattack.square, steps=steps, give_up=hopeless if quick else None), eot)
    estimate = partial(
        zero_order, steps=budget.zero_order_steps, pairs=budget.zero_order_pairs, loss=logit_margin, eot=surface.eot,
        give_up=hopeless if quick else never,
    )  # fmt: skip
    given_up = 0.5 if quick else 1.0  # about the share of the queries after which images are given up
    planned = [
        PlannedAttack(
            name="square",
            kind="adaptive",
            access="scores",
            run=square,
            model=surface.oracle(),
            autoattack=("standard",),
            cost=given_up * steps * eot,
        ),
        PlannedAttack(
            name="zero-order",
            kind="adaptive",
            access="scores",
            run=estimate,
            model=surface.oracle(surface.attacked),
            cost=given_up * 2 * budget.zero_order_steps * budget.zero_order_pairs * surface.eot,
        ),
    ]
    if surface.scoreless or surface.black_box:
        planned.append(
            PlannedAttack(
                name="rays",
                kind="adaptive",
                access="labels",
                run=partial(rays, steps=2 * budget.square_queries),
                model=surface.oracle(),
                cost=2.0 * budget.square_queries,
            )
        )
    return planned
