"""Budgets: how hard an audit tries. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradmask.checks import check_between, check_is, check_whole, is_a, shown
from pytest_gradmask.errors import InputError

#: The numbers of AutoAttack's versions ``standard`` and ``rand`` (Croce and Hein 2020, arXiv:2003.01690).
_PUBLISHED = {"apgd_steps": 100, "targets": 9, "fab_steps": 100, "square_queries": 5000, "eot": 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Iterations of every attack.

    Attributes:
        name: how users choose it.
        samples: images that the plugin evaluates.
        margin: default margin of the verdict, as a share of images: no smaller than ``samples`` can resolve.
        apgd_steps: of AutoAttack's APGD, on cross-entropy and targeted.
        targets: target classes of APGD-T and FAB-T (fewer where the defense has fewer).
        fab_steps: of FAB-T, for each target.
        square_queries: of Square. RayS has twice as many: with ``full``, those of its paper.
        bpda_steps: of APGD on the bypassed defense, and of transfer attacks.
        zero_order_steps, zero_order_pairs: of zero-order PGD.
        eot: forwards averaged in each gradient step on randomized defenses.
        pilot_samples: forwards by which a randomized defense is judged on each image.

    Raises:
        InputError: a number is not whole or below 1, or the margin is not between 0 and 1.
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

    def __post_init__(self) -> None:
        check_is("name", self.name, "a text", str)
        check_between("margin", self.margin, 0, 1, "0.05")
        for name in self.__dataclass_fields__.keys() - {"name", "margin"}:
            check_whole(name, getattr(self, name), 1)

    @property
    def autoattack(self) -> str:
        """What to call AutoAttack's attacks: ``AutoAttack`` only with the numbers that were published."""
        published = all(getattr(self, name) == value for name, value in _PUBLISHED.items())
        return "AutoAttack" if published else f"AutoAttack ({self.name} subset)"


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            name="smoke",
            samples=20,
            margin=0.25,
            apgd_steps=20,
            targets=3,
            fab_steps=5,
            square_queries=200,
            bpda_steps=20,
            zero_order_steps=10,
            zero_order_pairs=10,
            eot=2,
            pilot_samples=10,
        ),
        Budget(
            name="ci",
            samples=200,
            margin=0.05,
            apgd_steps=50,
            targets=5,
            fab_steps=20,
            square_queries=1000,
            bpda_steps=50,
            zero_order_steps=20,
            zero_order_pairs=20,
            eot=4,
            pilot_samples=20,
        ),
        Budget(
            name="full",
            samples=1000,
            margin=0.02,
            apgd_steps=100,
            targets=9,
            fab_steps=100,
            square_queries=5000,
            bpda_steps=100,
            zero_order_steps=50,
            zero_order_pairs=40,
            eot=20,
            pilot_samples=50,
        ),
    )
}  # fmt: skip


def get_budget(budget: str | Budget) -> Budget:
    """The budget of this name, or this budget.

    Raises:
        InputError: no budget has this name, or a built-in one of the same name has other numbers.
    """
    if is_a(budget, Budget):
        assert isinstance(budget, Budget)
        if budget != BUDGETS.get(budget.name, budget):
            raise InputError(
                f"budget: name={shown(budget.name)} is that of a budget with other numbers; give another name"
            )
        return budget
    if not is_a(budget, str) or budget not in BUDGETS:
        raise InputError(f"budget={shown(budget)}: unknown; use one of {', '.join(BUDGETS)}, or a Budget of your own")
    return BUDGETS[budget]
