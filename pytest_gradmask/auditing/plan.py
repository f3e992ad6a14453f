"""Which attacks an audit runs on a defense: the gradient attacks first, then those that adapt to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.bypass.bpda import bypassed, removed
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits, find_inner_logits
from pytest_gradmask.attacks.bypass.search import SEARCH_FORWARDS, SEARCH_IMAGES, find_bypass
from pytest_gradmask.attacks.decision import foolbox_installed, hop_skip_jump
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.eot import on_average
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle, errors_attributed_to
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models.composites import Mixture
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Kind

Run = Callable[..., torch.Tensor]

#: Queries of the first step of HopSkipJump. Step t has sqrt(t) times as many, so some 20 steps make 3,000.
_EVALUATIONS = 50
_QUICK_STEPS = 10


@dataclass(frozen=True, slots=True)
class PlannedAttack:
    """One attack, ready to run.

    Attributes:
        name: unique within the plan.
        kind: its family.
        run: ``run(model, images, labels, threat=, generator=)`` returns the perturbed images.
        model: what it queries; its counters belong to this attack alone.
        autoattack: whether it is one of AutoAttack's attacks.
        skip: if not empty, why it cannot run on this defense.
    """

    name: str
    kind: Kind
    run: Run
    model: Oracle
    autoattack: bool = False
    skip: str = ""


@dataclass(frozen=True, slots=True)
class AttackSurface:
    """A defense as the attacker sees it.

    Attributes:
        randomized: whether its answers differ from forward to forward.
        attacked: the module that adaptive attacks take gradients from: the model or, where the members of an
            ensemble are known, their mixture.
        approximations: submodules of ``attacked`` to bypass, each with its substitute or None.
        inner: a submodule of ``attacked`` that returns logits which the defense then disguises; empty if there is none.
        scoreless: whether the outputs do not tell how near an image is to another class.
        eot: forwards of ``attacked`` to average in each step; 1 unless its randomness has to be sampled.
    """

    defense: Defense
    stream: RandomStream
    classes: int
    randomized: bool
    attacked: nn.Module
    approximations: dict[str, object] = field(default_factory=dict)
    inner: str = ""
    scoreless: bool = False
    eot: int = 1

    def oracle(self, model: nn.Module | None = None) -> Oracle:
        """A fresh counter around the defense, or around a model made of ``attacked``."""
        if model is None:
            return Oracle(self.defense.model, self.stream, self.defense.outputs)
        if isinstance(model, Mixture):
            return Oracle.of_mixture(model, self.stream, self.defense.outputs)
        return Oracle(model, self.stream, self.defense.outputs)

    def rewired(self, rewire: Callable[[nn.Module, dict[str, object]], nn.Module]) -> nn.Module:
        """``attacked`` with its substitutes: member by member where it is a mixture, so that its members stay known."""
        if not isinstance(self.attacked, Mixture):
            return rewire(self.attacked, self.approximations)
        modules = dict(self.attacked.named_modules(remove_duplicate=False))
        found = {modules[name]: approximation for name, approximation in self.approximations.items()}
        members = [
            # By module, not by name: members may share one.
            rewire(member, {name: found[module] for name, module in member.named_modules() if module in found})
            for member in self.attacked.members
        ]
        return Mixture(members, self.attacked.weights, probabilities=self.attacked.probabilities)


def find_attack_surface(
    defense: Defense,
    stream: RandomStream,
    classes: int,
    randomized: bool,
    images: torch.Tensor,
    threat: ThreatModel,
    eot: int,
) -> AttackSurface:
    """Decide what an adaptive attacker looks at, finding bypass candidates unless told."""
    known = bool(defense.members)
    attacked = defense.model
    if known:
        attacked = Mixture(defense.members, defense.weights, probabilities=defense.outputs == "probabilities")
    surface = AttackSurface(defense, stream, classes, randomized, attacked, eot=eot if randomized and not known else 1)
    few = images[:SEARCH_IMAGES]
    surface = replace(surface, approximations=_substitutes(surface, few))
    if known:
        return surface
    with stream.active(), errors_attributed_to(defense.name, few):
        inner = find_inner_logits(defense.model, few, defense.outputs, forwards=SEARCH_FORWARDS if randomized else 1)
    return replace(surface, inner=inner, scoreless=not randomized and _scoreless(surface.oracle(), few, threat))


def _substitutes(surface: AttackSurface, images: torch.Tensor) -> dict[str, object]:
    """What to bypass, under its name in ``surface.attacked``."""
    defense, attacked = surface.defense, surface.attacked
    told = defense.bypassed_modules()
    if told is None:
        with surface.stream.active():
            return _found(surface, images)
    if not defense.members:
        return told
    # The names are those of the model; the mixture holds the same modules under its own.
    modules = dict(defense.model.named_modules())
    own = {module: name for name, module in attacked.named_modules()}
    outside = [name for name in told if modules[name] not in own]
    if outside:
        raise InputError(
            f"bypass: {', '.join(outside)} is part of {defense.name} but of none of its members; "
            "an attack on the members cannot bypass it: leave it or members= out"
        )
    return {own[modules[name]]: approximation for name, approximation in told.items()}


def _scoreless(look: Oracle, images: torch.Tensor, threat: ThreatModel) -> bool:
    """Whether the outputs for most images do not move at all when the images do, in any of three directions."""
    still = torch.ones(len(images), dtype=torch.bool, device=images.device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = look(images)
        for _ in range(3):
            still &= (look(threat.random_start(images, generator)) == before).all(1)
    return bool(2 * still.sum() > len(images))


def _found(surface: AttackSurface, images: torch.Tensor) -> dict[str, object]:
    if not surface.defense.members:
        with errors_attributed_to(surface.defense.name, images):
            return find_bypass(surface.attacked, images, forwards=SEARCH_FORWARDS if surface.eot > 1 else 1)
    found: dict[str, object] = {}
    for number, member in enumerate(surface.defense.members):
        with errors_attributed_to(f"members[{number}]", images):
            found |= {f"members.{number}.{name}": new for name, new in find_bypass(member, images).items()}
    return found


def plan_attacks(surface: AttackSurface, budget: Budget, quick: bool = False) -> list[PlannedAttack]:
    """All gradient and adaptive attacks, in the order to run them.

    Args:
        surface: the defense as its attacker sees it.
        budget: how hard to try.
        quick: whether a short attack comes first, to spare AutoAttack's the images that fall to anything.

    Raises:
        InputError: an attack of the user's has the name of another.
    """
    own = [
        PlannedAttack(attack.name, attack.kind, partial(_counted, attack.run), surface.oracle(attack.through))
        for attack in surface.defense.own_attacks()
    ]
    first = [_quick_attack(surface)] if quick and not surface.randomized else []
    gradient, adaptive = _gradient_attacks(surface, budget), _adaptive_attacks(surface, budget)
    taken = {attack.name for attack in (*first, *gradient, *adaptive)} | {"placebo"}
    for attack in own:
        if attack.name in taken:
            raise InputError(f"attacks: {attack.name!r} is the name of one that every audit runs; give it another")
    # After AutoAttack's, whose figure they would change, and before the adaptive ones, which they may spare.
    return [*first, *gradient, *own, *adaptive]


def _counted(run: Run, model: Oracle, *batch: torch.Tensor, **arguments: object) -> torch.Tensor:
    """What an attack of the user's returns, if it has shown what it costs."""
    before = model.forwards
    returned = run(model, *batch, **arguments)
    if model.forwards == before:
        raise InputError(
            "it asked nothing of the model it was given, so nobody can tell what it cost; ask that one, or name "
            "another as Attack(through=...)"
        )
    return returned


def _quick_attack(surface: AttackSurface) -> PlannedAttack:
    return PlannedAttack("pgd", "gradient", partial(pgd, steps=_QUICK_STEPS, stop_early=True), surface.oracle())


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
    planned = [PlannedAttack(name, "gradient", run, surface.oracle(), autoattack=True) for name, run in runs.items()]
    if surface.randomized:
        # Upstream's EOT averages gradients, but keeps the iterate that fooled a single forward.
        follow = partial(apgd, steps=budget.apgd_steps, eot=surface.eot, stop_early=surface.eot == 1)
        planned.append(PlannedAttack("apgd-eot", "gradient", follow, surface.oracle(surface.attacked)))
    return planned


def _adaptive_attacks(surface: AttackSurface, budget: Budget) -> list[PlannedAttack]:
    follow = partial(apgd, steps=budget.bpda_steps, eot=surface.eot, stop_early=surface.eot == 1)
    approximations = surface.approximations
    skip = "" if approximations else "no submodule to bypass was given or found"
    around = surface.rewired(bypassed)
    planned = [
        PlannedAttack("bpda", "adaptive", follow, surface.oracle(around), skip=skip),
        PlannedAttack(
            "transfer-backbone",
            "adaptive",
            partial(follow, stop_early=False),
            surface.oracle(surface.rewired(removed)),
            skip=skip,
        ),
    ]
    if surface.inner:
        inside = InnerLogits(around, f"model.{surface.inner}")
        seen = Oracle(inside, surface.stream)  # logits, whatever the defense returns
        planned.append(PlannedAttack("inner-logits", "adaptive", partial(follow, loss=logit_margin), seen))
    if surface.randomized and surface.defense.members:
        on_members: dict[str, Run] = {
            "bpda-members": partial(member_by_member, steps=budget.bpda_steps),
            "joint-margins": partial(follow, loss=joint_margins),
            "arc": partial(arc, steps=max(1, budget.bpda_steps // 2)),
        }
        planned += [PlannedAttack(name, "adaptive", run, surface.oracle(around)) for name, run in on_members.items()]
    for number, source in enumerate(surface.defense.sources):
        run = partial(apgd, steps=budget.bpda_steps, stop_early=False)
        planned.append(PlannedAttack(f"transfer-source-{number}", "adaptive", run, Oracle(source, surface.stream)))
    eot = budget.eot if surface.randomized else 1
    # As many forwards as on a deterministic defense: fewer queries, each judged by the mean of some.
    queries = on_average(partial(autoattack.square, steps=max(1, budget.square_queries // eot)), eot)
    planned.append(PlannedAttack("square", "adaptive", queries, surface.oracle(), True))
    estimate = partial(
        zero_order, steps=budget.zero_order_steps, pairs=budget.zero_order_pairs, loss=logit_margin, eot=surface.eot
    )
    planned.append(PlannedAttack("zero-order", "adaptive", estimate, surface.oracle(surface.attacked)))
    if surface.scoreless:
        skip = "" if foolbox_installed() else "it needs foolbox: pip install 'pytest-gradmask[decision]'"
        walk = partial(hop_skip_jump, steps=budget.zero_order_steps, evaluations=_EVALUATIONS)
        planned.append(PlannedAttack("hop-skip-jump", "adaptive", walk, surface.oracle(), skip=skip))
    return planned


def plan_placebo(surface: AttackSurface, budget: Budget, passes: float) -> PlannedAttack:
    """A gradient attack with a fresh seed and the budget of the adaptive attacks: what that buys without adapting.

    ``passes`` is how many forward and backward passes an image the adaptive attacks have spent together; the placebo
    gets at least as many, in whole restarts.
    """
    each = surface.eot * max(1, len(surface.defense.members))
    # Rounded up: a placebo with less than the adaptive attacks' budget makes mere extra budget look like masking.
    restarts = max(1, math.ceil(passes / (2 * each * (budget.apgd_steps + 1))))
    run = partial(apgd, steps=budget.apgd_steps, restarts=restarts, eot=surface.eot, stop_early=surface.eot == 1)
    return PlannedAttack("placebo", "placebo", run, surface.oracle(surface.attacked))


def known_models(defense: Defense) -> Sequence[nn.Module]:
    """Every module an audit may touch."""
    through = [attack.through for attack in defense.own_attacks() if attack.through is not None]
    return (defense.model, *defense.members, *defense.sources, *through)
