"""The adaptive attacks of an audit: BPDA, transfer, attacks on members of an ensemble, and those without a gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.bypass.bpda import bypassed, removed
from pytest_gradmask.attacks.bypass.classifiers import JointClassifier
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits
from pytest_gradmask.attacks.bypass.operations.search import scripted_parts
from pytest_gradmask.attacks.decision import rays
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.eot import on_average
from pytest_gradmask.attacks.hopeless import hopeless, never
from pytest_gradmask.attacks.losses import logit_margin, unsaturated_cross_entropy
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.reversed import pgd_reversed
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.planned import PlannedAttack, Run, follow_gradient, gradient_steps
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.threat import Access

#: Name of operation-level BPDA.
OPERATIONS = "bpda-operations"


def adaptive_attacks(surface: AttackSurface, budget: Budget, *, quick: bool) -> list[PlannedAttack]:
    """All of them, in the order to run them. The arguments are those of `plan.plan_attacks`."""
    follow = partial(follow_gradient(surface, budget.bpda_steps), loss=unsaturated_cross_entropy)
    skip = "" if surface.approximations else "no submodule to bypass was given or found"
    through: Access = "bypass" if surface.approximations else "gradient"
    around = surface.rewired(bypassed)

    cost = gradient_steps(surface, budget.bpda_steps)

    def adaptive(name: str, access: Access, run: Run, model: Oracle, skip: str = "", **more: Any) -> PlannedAttack:
        more = {"cost": cost, **more}
        return PlannedAttack(name=name, kind="adaptive", access=access, run=run, model=model, skip=skip, **more)

    backbone = surface.oracle(surface.rewired(removed))
    transfer = partial(follow, stop_early=False)
    planned = [  # inner classifiers first: their passes are cheap, and what they break often decides
        *(
            adaptive(
                f"transfer-inner-{'joint' if isinstance(inner, JointClassifier) else number}",
                "surrogate",
                transfer,
                surface.inner_oracle(inner),
            )
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
    steps = max(1, budget.bpda_steps // 2)
    reverse = partial(pgd_reversed, steps=steps, eot=surface.eot, stop_early=not surface.randomized)
    model, cost_of_reverse = surface.oracle(surface.attacked), gradient_steps(surface, steps)
    planned.append(adaptive("pgd-reversed", "gradient", reverse, model, cost=cost_of_reverse))
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
