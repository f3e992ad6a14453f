"""The attack check: would the attacks of an audit find adversarial examples on this defense if there were some?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_gradmask.auditing.events import Message, Progress, Step
from pytest_gradmask.auditing.planned import PlannedAttack
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.auditing.surface import AttackSurface
from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
from pytest_gradmask.threat import PerturbationSet, ball_of
from pytest_gradmask.verdict.results import Finding

#: Id of the finding.
ATTACK_FAILS = "attack-fails-binarization-test"
#: Images of the binarization test. Eight recognise a broken attack; 24 decide about one that misses a few. If it misses
#: none, but too few of the images can be tested, 72 are tried.
_COUNTS = (8, 24, 72)


def check_attacks(
    surface: AttackSurface,
    attacks: Sequence[PlannedAttack],
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    seed: int,
    progress: Progress,
    saturated: bool = False,
) -> list[Finding]:
    """A finding unless a gradient attack, or else BPDA, passes the binarization test on this defense.

    Args:
        surface: the defense as its attacker sees it.
        attacks: of the audit. Those with ``checked`` are tested, in this order, until one passes.
        images, labels: N x C x H x W and N, classified correctly; at most 72 are used.
        threat: where attacks may search; the test takes the ball of `ball_of`.
        seed: of every random choice.
        progress: is called before each step.
        saturated: whether the softmax saturates. The cross-entropy has no gradient then, but the losses of other
            gradient attacks do.
    """
    failed = []
    when = ("always", "saturated") if saturated else ("always",)
    for attack in attacks:
        if attack.checked in when and not attack.skip:
            passed, outcome = _check(surface, attack, images, labels, threat=threat, seed=seed, progress=progress)
            if passed:
                return []
            failed.append(outcome)
    message = f"of adversarial examples embedded in this defense, {'; '.join(failed)}"
    return [Finding(ATTACK_FAILS, message, undermines_attacks=True)]


def check_step(attacks: Sequence[PlannedAttack]) -> list[Step]:
    """The attack check as a step of the plan: a list of one, or of none if no attack can be checked."""
    return [_step(attack) for attack in attacks if attack.checked == "always" and not attack.skip][:1]


def _step(attack: PlannedAttack) -> Step:
    # To embed an example, its ball is searched, and a last layer is fitted. The figures are measured.
    return Step(attack="attack check", kind="check", cost=500 + 3 * attack.cost)


def _check(
    surface: AttackSurface,
    attack: PlannedAttack,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    seed: int,
    progress: Progress,
) -> tuple[bool, str]:
    """Whether an attack passes the binarization test, and what it found in words."""

    def test(count: int, *, frozen: bool) -> BinarizationTest:
        step, few = _step(attack), min(count, len(images))
        progress(Message(f"binarization test of {attack.name} on {few} images", step, few))
        generator = torch.Generator().manual_seed(subseed(seed, f"unit test of {attack.name}"))
        return binarization_test(
            attack.as_checked or attack.run, surface.defense, images[:count], labels[:count],
            threat=ball_of(threat), generator=generator, through=attack.model.model, frozen=frozen,
        )  # fmt: skip

    frozen = False
    try:
        for count in _COUNTS:
            result = test(count, frozen=frozen)
            if surface.randomized and not frozen and result.tested == 0:
                # Noise hides every embedded example. Held at one draw, the defense has examples to find.
                frozen, result = True, test(count, frozen=True)
            missed = result.passed < result.tested
            if result.ok or result.fails or count >= len(images) or (missed and count > _COUNTS[0]):
                break
    except Exception as error:  # neither the defense nor its last layer is ours
        return False, f"{attack.name} cannot be tested ({type(error).__name__}: {error})"
    held = " with its random numbers held" if frozen else ""
    few = "" if result.ok or result.fails else ", too few to decide"
    return result.ok, f"{attack.name} finds {result.passed} of {result.tested}{held}{few}"
