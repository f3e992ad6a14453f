"""One planned attack of an audit, and what the plans of gradient and adaptive attacks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.threat import Access
from pytest_gradmask.verdict.results import AutoAttackVersion, Kind

Run = Callable[..., Tensor]


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


def gradient_steps(surface: AttackSurface, steps: int) -> float:
    """The cost of so many steps: each is a forward and a backward of every member, averaged over forwards."""
    return 3.0 * steps * surface.eot * max(1, len(surface.defense.members))


def follow_gradient(surface: AttackSurface, steps: int) -> Run:
    """APGD; on a randomized defense with EOT, and then without stopping at the first success of a single draw."""
    return partial(apgd, steps=steps, eot=surface.eot, stop_early=surface.eot == 1)
