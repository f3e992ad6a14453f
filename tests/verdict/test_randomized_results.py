"""The figures of an audit of a randomized defense, and its verdict: chances in place of broken images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pytest_gradmask.report.json import to_json
from pytest_gradmask.report.text import attack_notes, attack_table
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import (
    AttackResult,
    AutoAttackVersion,
    Kind,
    Prediction,
    Proportion,
    Verdict,
    always_correct,
    chances,
)
from pytest_gradmask.verdict.rule import decide, measure_gap
from pytest_gradmask.verdict.stats import accuracy_bounds, difference_bounds

FOUR = (0, 1, 2, 3)


def sampled(chance: float, pilot: float | None = None, first: bool = True, number: int = 20) -> Prediction:
    return Prediction(chance if pilot is None else pilot, chance, number, first)


def result(name: str, kind: Kind, found: Sequence[float | Prediction], *, rand: bool = False) -> AttackResult:
    predictions = {index: each if isinstance(each, Prediction) else sampled(each) for index, each in enumerate(found)}
    broken = tuple(index for index, each in predictions.items() if each.correct < 0.5)
    versions: tuple[AutoAttackVersion, ...] = ("standard", "rand") if rand else ()
    return AttackResult(
        name, kind, attacked=tuple(predictions), broken=broken, predictions=predictions, autoattack=versions
    )


CLEAN = {0: sampled(1.0), 1: sampled(0.9), 2: sampled(0.5, first=False), 3: sampled(0.0, first=False)}
ATTACKS = (
    result("apgd-ce", "gradient", [0.8, sampled(0.4, first=False), sampled(0.5, pilot=0.6)], rand=True),
    result("apgd-dlr", "gradient", [0.9, 0.5, 0.5], rand=True),
    result("bpda", "adaptive", [0.0, 0.4, 0.1]),
    result("placebo", "placebo", [0.8, 0.3, 0.5]),
)


@pytest.fixture
def audit() -> Audit:
    return Audit(
        defense="toy",
        verdict=Verdict.INCONCLUSIVE,
        reasons=("too few images",),
        clean=(True, True, True, False),
        attacks=ATTACKS,
        gap=None,
        findings=(),
        images_needed=None,
        margin=0.25,
        confidence=0.99,
        predictions=CLEAN,
    )


def test_chances_are_those_at_the_worst_point_by_its_pilot() -> None:
    clean = (True, True, True, False)
    assert chances(clean, CLEAN, []) == [1.0, 0.9, 0.5, 0.0]
    assert chances(clean, CLEAN, ATTACKS[:2]) == [0.8, 0.4, 0.5, 0.0]
    assert chances(clean, CLEAN, ATTACKS) == [0.0, 0.3, 0.1, 0.0]
    lucky = result("lucky", "gradient", [sampled(1.0, pilot=0.0)])
    assert chances(clean, CLEAN, [lucky])[0] == 1.0  # chosen by the pilot, judged by the other votes


def test_deterministic_chances_are_zero_and_one() -> None:
    broken = AttackResult("bpda", "adaptive", attacked=FOUR, broken=(1,))
    assert chances((True, True, False), {}, [broken]) == [1.0, 0.0, 0.0]


def test_accuracies_are_means_of_chances(audit: Audit) -> None:
    assert audit.clean_accuracy.count == pytest.approx(2.4)
    assert audit.gradient_accuracy.value == pytest.approx(1.7 / 4)
    assert audit.robust_accuracy.value == pytest.approx(0.1)
    assert audit.accuracy_under("bpda").value == pytest.approx((0 + 0.4 + 0.1) / 4)
    share = audit.clean_accuracy
    assert (share.low, share.high) == accuracy_bounds([1.0, 0.9, 0.5, 0.0], 0.99)
    assert share.low < share.value < share.high


def test_autoattack_rand_by_samples_and_by_one_forward(audit: Audit) -> None:
    assert audit.rand_accuracy is not None
    assert audit.rand_claim is not None
    assert audit.rand_accuracy.value == pytest.approx(1.7 / 4)
    assert audit.rand_claim.count == 1  # image 1 fell to one forward, 2 and 3 did without an attack


def test_the_worst_of_many_draws_is_apart_from_their_mean(audit: Audit) -> None:
    worst = audit.worst_draw_accuracy
    assert worst is not None
    assert (worst.count, worst.total) == (0, 4)
    unattacked = replace(audit, attacks=())
    assert unattacked.worst_draw_accuracy is not None
    assert unattacked.worst_draw_accuracy.count == 1  # of chances 1, 0.9, 0.5 and 0
    assert unattacked.robust_accuracy.count == pytest.approx(2.4)
    assert unattacked.worst_draw_accuracy == Proportion.of(1, 4, audit.confidence)


def test_the_worst_draw_counts_the_samples_that_choose_a_point_and_no_others() -> None:
    rarely = result("bpda", "adaptive", [sampled(0.9, pilot=1.0), sampled(1.0, pilot=0.95)])
    assert always_correct(2, {0: CLEAN[0], 1: CLEAN[0]}, [rarely]) == [True, False]
    members = replace(CLEAN[0], pilot=1 - 1e-16, correct=1 - 1e-16, number=0)  # a sum of weights
    assert always_correct(1, {0: members}, []) == [True]


def test_a_deterministic_defense_has_no_rand(audit: Audit) -> None:
    plain = replace(audit, predictions={}, attacks=tuple(replace(attack, predictions={}) for attack in ATTACKS))
    assert (plain.rand_accuracy, plain.rand_claim, plain.worst_draw_accuracy) == (None, None, None)
    assert to_json(plain)["all_attacks_worst_draw"] is None
    assert plain.clean_accuracy.count == 3


def test_an_image_is_decided_once_never_correct() -> None:
    assert result("bpda", "adaptive", [0.0, sampled(0.2, pilot=0.0), sampled(0.0, pilot=0.1)]).decided == {0, 1}
    assert AttackResult("bpda", "adaptive", attacked=FOUR, broken=(2,)).decided == {2}


def test_reports_tell_how_it_was_judged(audit: Audit) -> None:
    lines = attack_table(audit)
    assert sum(line.startswith("AutoAttack rand, ") for line in lines) == 2
    assert lines[-1].startswith("all attacks, no sample wrong")
    assert "from 20 to 20 forwards" in attack_notes(audit)[-1]
    exact = {index: replace(predictions, number=0) for index, predictions in CLEAN.items()}
    attacks = tuple(
        replace(
            attack,
            predictions={index: replace(predictions, number=0) for index, predictions in attack.predictions.items()},
        )
        for attack in ATTACKS
    )
    assert "exact" in attack_notes(replace(audit, predictions=exact, attacks=attacks))[-1]
    content = to_json(audit)
    assert content["autoattack_rand"]["value"] == pytest.approx(1.7 / 4)
    assert content["autoattack_rand_one_forward"]["value"] == 0.25
    assert content["all_attacks_worst_draw"]["value"] == 0


# the verdict


def test_the_gap_is_the_mean_difference_of_chances() -> None:
    clean = (True, True, True, False)
    gap = measure_gap(clean, CLEAN, ATTACKS, 0.99)
    assert gap is not None
    differences = [0.8 - 0.0, 0.3 - 0.4, 0.5 - 0.1]
    assert gap.estimate == pytest.approx(sum(differences) / 3)
    assert gap.excess == pytest.approx(1.2)
    assert gap.placebo_only == pytest.approx(0.1)
    assert (gap.low, gap.high) == pytest.approx(difference_bounds(differences, 1 - 0.01 * 0.985))


def evidence(adaptive: Sequence[float], placebo: Sequence[float]) -> list[AttackResult]:
    return [
        result("apgd-ce", "gradient", [1.0] * len(adaptive)),
        result("bpda", "adaptive", adaptive),
        result("placebo", "placebo", placebo),
    ]


def verdict(attacks: Sequence[AttackResult], margin: float) -> Verdict:
    count = len(attacks[0].predictions)
    predictions = {index: sampled(1.0) for index in range(count)}
    return decide([True] * count, attacks, [], margin=margin, confidence=0.99, predictions=predictions).verdict


def test_verdicts() -> None:
    assert verdict(evidence([1.0] * 200, [1.0] * 200), 0.05) is Verdict.NOT_MASKED
    assert verdict(evidence([1.0] * 20, [1.0] * 20), 0.25) is Verdict.NOT_MASKED
    assert verdict(evidence([0.4] * 20, [1.0] * 20), 0.25) is Verdict.MASKED
    assert verdict(evidence([0.7] * 200, [0.95] * 200), 0.05) is Verdict.MASKED
    assert verdict(evidence([0.9] * 20, [1.0] * 20), 0.05) is Verdict.INCONCLUSIVE
    assert verdict(evidence([1.0] * 200, [0.5] * 200), 0.05) is Verdict.INCONCLUSIVE  # not converged


def drawn(generator: np.random.Generator, count: int, gap: float) -> Verdict:
    """An audit of images whose chances vary; the adaptive attack lowers a share of them to zero."""
    before = generator.beta(2, 1, count)
    after = np.where(generator.random(count) < gap, 0.0, before)

    def predictions(chance: np.ndarray) -> list[Prediction]:
        pilots, others = generator.binomial(20, chance) / 20, generator.binomial(30, chance) / 30
        return [Prediction(*each, 30, True) for each in zip(pilots.tolist(), others.tolist(), strict=True)]

    clean = dict(enumerate(predictions(before)))
    attacks = [
        result("apgd-ce", "gradient", predictions(before)),
        result("bpda", "adaptive", predictions(after)),
        result("square", "adaptive", predictions(before)),
        result("zero-order", "adaptive", predictions(before)),
        result("placebo", "placebo", predictions(before)),
    ]
    return decide([True] * count, attacks, [], margin=0.05, confidence=0.99, predictions=clean).verdict


def test_verdicts_on_noise_alone_and_on_a_gap() -> None:
    generator = np.random.default_rng(0)
    noise = [drawn(generator, 200, 0.0) for _ in range(60)]
    assert Verdict.MASKED not in noise
    assert noise.count(Verdict.NOT_MASKED) > 40
    gap = [drawn(generator, 200, 0.3) for _ in range(30)]  # 20 points: the mean chance is two thirds
    assert gap.count(Verdict.MASKED) >= 29
