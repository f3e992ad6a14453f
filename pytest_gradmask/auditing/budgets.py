"""Budgets: how hard an audit tries. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradmask.errors import InputError


@dataclass(frozen=True, slots=True)
class Budget:
    """Iterations of every attack.

    Attributes:
        name: how users choose it.
        samples: images that the plugin evaluates.
        margin: default margin of the verdict, as a share of images: no smaller than ``samples`` can resolve.
        apgd_steps: of AutoAttack's APGD, on cross-entropy and targeted.
        targets: target classes of APGD-T and FAB-T (fewer where the defense has fewer).
        fab_steps: of FAB-T, for each target.
        square_queries: of Square.
        bpda_steps: of APGD on the bypassed defense, and of transfer attacks.
        zero_order_steps, zero_order_pairs: of zero-order PGD; the steps are HopSkipJump's, too.
        eot: forwards averaged in each gradient step on randomized defenses.
        pilot_samples: forwards by which a randomized defense is judged on each image.
    """

    name: str
    samples: int
    margin: float
    apgd_steps: int
    targets: int
    fab_steps: int
    square_queries: int
    bpda_steps: int
    zero_order_steps: int
    zero_order_pairs: int
    eot: int
    pilot_samples: int

    @property
    def autoattack(self) -> str:
        """What to call AutoAttack at this budget: only ``full`` runs it as published."""
        return "AutoAttack" if self.name == "full" else f"AutoAttack ({self.name} subset)"


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("smoke", 20, 0.25, 20, 3, 5, 200, 20, 10, 10, 2, 10),
        Budget("ci", 200, 0.05, 50, 5, 20, 1000, 50, 20, 20, 4, 20),
        Budget("full", 1000, 0.02, 100, 9, 100, 5000, 100, 50, 40, 20, 50),
    )
}


def get_budget(budget: str | Budget) -> Budget:
    """The budget of this name, or this budget; `InputError` if there is none."""
    if isinstance(budget, Budget):
        return budget
    if not isinstance(budget, str) or budget not in BUDGETS:
        raise InputError(f"budget={budget!r}: unknown; use one of {', '.join(BUDGETS)}, or a Budget of your own")
    return BUDGETS[budget]
