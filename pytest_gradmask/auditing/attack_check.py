"""Whether the gradient attacks of an audit would find adversarial examples on this defense if there were some."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.plan import AttackSurface, PlannedAttack, plan_attacks
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding

#: Images of the unit test: the first tell a broken attack, all of them settle one that misses a few.
_COUNTS = (8, 24)
#: In this order; one that passes is enough.
_VETTED = ("apgd-ce", "apgd-eot", "bpda")


def check_attacks(
    surface: AttackSurface,
    budget: Budget,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    seed: int,
    progress: Callable[[str], None],
) -> list[Finding]:
    """A finding unless a gradient attack, or else BPDA, finds examples that are planted in this defense.

    Args:
        surface: the defense as its attacker sees it.
        budget: of the attacks.
        images, labels: N x C x H x W and N, classified correctly; at most 24 are used.
        threat: where attacks may search.
        seed: of every random choice.
        progress: called with a line of text before each step.
    """
    told = []
    for attack in plan_attacks(surface, budget):
        if attack.name in _VETTED and not attack.skip:
            passed, found = _vetted(attack, surface, images, labels, threat, seed, progress)
            if passed:
                return []
            told.append(found)
    return [Finding("attack-fails-binarization-test", f"of examples planted in this defense, {'; '.join(told)}", True)]


def _vetted(
    attack: PlannedAttack,
    surface: AttackSurface,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[bool, str]:
    """Whether an attack passes its unit test, and what it found in words."""

    def test(count: int, frozen: bool) -> BinarizationTest:
        progress(f"unit test of {attack.name} on {min(count, len(images))} images")
        generator = torch.Generator().manual_seed(subseed(seed, f"unit test of {attack.name}"))
        return binarization_test(
            attack.run, surface.defense, images[:count], labels[:count], threat=threat, generator=generator,
            through=attack.model.model, frozen=frozen,
        )  # fmt: skip

    frozen = False
    try:
        for count in _COUNTS:
            result = test(count, frozen)
            if surface.randomized and not frozen and result.tested == 0:
                # Where noise drowns whatever is planted, there is nothing to find until it is held.
                frozen, result = True, test(count, True)
            if result.ok or result.fails or count >= len(images):
                break
    except Exception as error:  # neither the defense nor its last layer is ours
        return False, f"{attack.name} cannot be tested ({type(error).__name__}: {error})"
    held = " with its random numbers held" if frozen else ""
    few = "" if result.ok or result.fails else ", too few to tell"
    return result.ok, f"{attack.name} finds {result.passed} of {result.tested}{held}{few}"
