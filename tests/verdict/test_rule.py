"""From broken images to a verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.results import AttackResult, Finding, Kind, Status, Verdict
from pytest_gradmask.verdict.rule import Decision, decide, measure_gap
from pytest_gradmask.verdict.stats import clopper_pearson

UNDERMINED = Finding("zero-gradient", "the gradient is exactly zero", undermines_attacks=True)
HARMLESS = Finding("randomized", "the same image gets other logits")


def result(name: str, kind: Kind, broken: Collection[int] = ()) -> AttackResult:
    return AttackResult(name, kind, attacked=tuple(range(1000)), broken=tuple(broken))


def failed(name: str, kind: Kind) -> AttackResult:
    return AttackResult(name, kind, status="failed", note="RuntimeError: no such thing")


def evidence(
    gradient: Collection[int] = (), adaptive: Collection[int] = (), placebo: Collection[int] = ()
) -> list[AttackResult]:
    return [
        result("apgd-ce", "gradient", gradient),
        result("bpda", "adaptive", adaptive),
        result("square", "adaptive"),
        result("placebo", "placebo", placebo),
    ]


def judge(
    total: int,
    attacks: Sequence[AttackResult],
    findings: Sequence[Finding] = (),
    *,
    margin: float = 0.25,
    clean: Sequence[bool] = (),
    confidence: float = 0.99,
) -> Decision:
    return decide(clean or [True] * total, attacks, findings, margin=margin, confidence=confidence)


def test_masked() -> None:
    decision = judge(20, evidence(gradient=[0], adaptive=range(1, 20)))
    assert decision.verdict is Verdict.MASKED
    assert decision.gap is not None
    assert (decision.gap.excess, decision.gap.placebo_only, decision.gap.estimate) == (19, 0, 0.95)
    assert "of 20 images classified correctly, adaptive attacks break 19" in decision.reasons[0]
    assert "bpda" in decision.reasons[1]
    assert decision.images_needed is None


def test_undefended_without_survivors_is_not_masked() -> None:
    decision = judge(20, evidence(gradient=range(20)))
    assert decision.verdict is Verdict.NOT_MASKED
    assert decision.reasons == (
        "no gap above 25 percentage points: it is 0.0 [-20.8, 20.8] at 99% confidence on 20 images classified "
        "correctly",
    )


def test_robust_and_unmasked() -> None:
    assert judge(20, evidence(), [HARMLESS]).verdict is Verdict.NOT_MASKED


def test_a_harmless_gap_is_not_masked() -> None:
    # Only an adaptive attack breaks 4 of 200 images: certainly fewer than 10 percentage points.
    assert judge(200, evidence(adaptive=range(4)), margin=0.1).verdict is Verdict.NOT_MASKED


@pytest.mark.parametrize(("survivors", "expected"), [(0, Verdict.NOT_MASKED), (1, Verdict.INCONCLUSIVE)])
def test_a_finding_is_moot_where_little_is_left(survivors: int, expected: Verdict) -> None:
    """A finding is moot where gradient attacks leave surely less than the margin."""
    # At 99 %, none of 20 is surely below 25 points, one of 20 is not.
    assert judge(20, evidence(gradient=range(survivors, 20)), [UNDERMINED]).verdict is expected


@pytest.mark.parametrize(
    ("attacks", "findings", "reason"),
    [
        pytest.param(
            [failed("apgd-ce", "gradient"), *evidence()],
            [],
            "apgd-ce failed: RuntimeError: no such thing",
            id="gradient attack failed",
        ),
        pytest.param(
            [*evidence(gradient=[0])[:3], failed("placebo", "placebo")],
            [],
            "placebo failed: RuntimeError",
            id="placebo failed",
        ),
        pytest.param(
            [*evidence(), failed("zero-order", "adaptive")],
            [],
            "zero-order failed: RuntimeError",
            id="adaptive attack failed",
        ),
        pytest.param(evidence(), [UNDERMINED], "zero-gradient: the gradient is exactly zero", id="undermined"),
        pytest.param(
            evidence(placebo=range(6)), [], "the placebo alone breaks another 30.0 percentage points", id="placebo"
        ),
        pytest.param(
            [result("apgd-ce", "gradient"), result("placebo", "placebo")],
            [],
            "no adaptive attack could run",
            id="no adaptive attack",
        ),
        pytest.param(
            [
                result("apgd-ce", "gradient"),
                AttackResult("bpda", "adaptive", status="skipped", note="nothing to bypass"),
                result("placebo", "placebo"),
            ],
            [],
            "no adaptive attack could run",
            id="every adaptive attack skipped",
        ),
        pytest.param(
            [result("apgd-ce", "gradient"), failed("bpda", "adaptive"), result("placebo", "placebo")],
            [],
            "bpda failed: RuntimeError",
            id="every adaptive attack failed",
        ),
        pytest.param([], [], "no adaptive attack could run", id="no attack at all"),
    ],
)
def test_inconclusive(attacks: list[AttackResult], findings: list[Finding], reason: str) -> None:
    decision = judge(20, attacks, findings)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert any(line.startswith(reason) or reason in line for line in decision.reasons)


def test_no_clean_correct_image() -> None:
    decision = judge(20, [], clean=[False] * 20)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.reasons[0].startswith("no image of 20 is classified correctly")
    assert decision.gap is None


@pytest.mark.parametrize("total", [1, 2, 10, 16])
def test_too_few_images_to_exclude_a_gap(total: int) -> None:
    decision = judge(total, evidence(gradient=range(total)))
    assert decision.verdict is Verdict.INCONCLUSIVE
    # The second attempt has 0.0075 of the error.
    assert decision.images_needed == 36
    assert decision.reasons[-1] == "if it goes on like this, about 36 images decide, audited as attempt 2"
    second: dict[str, Any] = {"margin": 0.25, "confidence": 0.99, "analysis": plan_analyses(36, 0.25, 0.99, 2)[-1]}
    assert decide([True] * 36, evidence(gradient=range(36)), [], **second).verdict is Verdict.NOT_MASKED
    assert judge(18, evidence(gradient=range(18))).verdict is Verdict.NOT_MASKED


@pytest.mark.parametrize("total", [1, 3, 6])
def test_too_few_images_to_establish_a_gap(total: int) -> None:
    decision = judge(total, evidence(adaptive=range(total)))
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.images_needed is not None
    enough = decision.images_needed + 3  # it is an estimate
    assert judge(enough, evidence(adaptive=range(enough))).verdict is Verdict.MASKED


def test_images_that_would_not_help_are_not_asked_for() -> None:
    # The gap is exactly the margin: more images of this kind show neither that it is above nor that it is below.
    decision = judge(20, evidence(adaptive=range(5)))
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.images_needed is None
    assert "more images of this kind will hardly decide" in decision.reasons[-1]


def test_what_the_placebo_breaks_too_is_no_gap() -> None:
    decision = judge(200, evidence(adaptive=range(100), placebo=range(100)))
    assert decision.gap is not None
    assert decision.gap.estimate == 0
    assert decision.verdict is Verdict.INCONCLUSIVE


def test_what_a_gradient_attack_breaks_too_is_no_gap() -> None:
    gap = measure_gap([True] * 20, {}, evidence(gradient=range(15), adaptive=range(20), placebo=range(10)), 0.99)
    assert gap is not None
    assert (gap.excess, gap.placebo_only) == (5, 0)


@pytest.mark.parametrize("findings", [[], [UNDERMINED]])
def test_what_does_not_stop_masked(findings: list[Finding]) -> None:
    """Neither a failed adaptive attack nor a finding stops MASKED."""
    attacks = [*evidence(adaptive=range(20)), failed("zero-order", "adaptive")]
    assert judge(20, attacks, findings).verdict is Verdict.MASKED


def test_early_decisions_have_a_small_share_of_the_error() -> None:
    skipped_early = [AttackResult(f"early-{number}", "adaptive", status="skipped-early") for number in range(10)]
    analysis = InterimAnalysis(20, after_each_attack=True)
    settings: dict[str, Any] = {"margin": 0.1, "confidence": 0.99, "analysis": analysis}
    enough, few = [*evidence(adaptive=range(20)), *skipped_early], [*evidence(adaptive=range(8)), *skipped_early]
    assert decide([True] * 20, enough, [], complete=False, **settings).verdict is Verdict.MASKED
    assert decide([True] * 20, few, [], complete=True, **settings).verdict is Verdict.MASKED
    assert decide([True] * 20, few, [], complete=False, **settings).verdict is Verdict.INCONCLUSIVE


def test_a_failed_gradient_attack_stops_masked() -> None:
    attacks = [*evidence(adaptive=range(20)), failed("fab-t", "gradient")]
    assert judge(20, attacks).verdict is Verdict.INCONCLUSIVE


def test_a_significant_gap_below_the_margin_is_open() -> None:
    decision = judge(200, evidence(adaptive=range(30)), margin=0.2)
    assert decision.gap is not None
    assert decision.gap.low > 0
    assert decision.verdict is Verdict.INCONCLUSIVE


STATUSES: list[Status] = [*["done"] * 8, "failed", "skipped", "skipped-early"]  # type: ignore[list-item]


@st.composite
def audits(draw: st.DrawFn) -> tuple[list[bool], list[AttackResult], list[Finding]]:
    """Anything an audit could find, failures included."""
    total = draw(st.integers(1, 60))
    clean = draw(st.lists(st.booleans(), min_size=total, max_size=total))
    survivors = {index for index, correct in enumerate(clean) if correct}
    attacks: list[AttackResult] = []
    kinds: list[Kind] = ["gradient", "gradient", "adaptive", "adaptive", "adaptive", "placebo"]
    for number, kind in enumerate(kinds):
        status: Status = draw(st.sampled_from(STATUSES if kind == "adaptive" else STATUSES[:-2]))
        share = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])) if status == "done" else 0.0
        order = draw(st.permutations(sorted(survivors)))
        broken = tuple(sorted(order[: round(share * len(order))]))
        attacks.append(
            AttackResult(f"{kind}-{number}", kind, attacked=tuple(sorted(survivors)), broken=broken, status=status)
        )
        if kind == "gradient":
            survivors -= set(broken)
    findings = draw(st.lists(st.sampled_from([UNDERMINED, HARMLESS]), max_size=1))
    return clean, attacks, findings


MARGINS = st.sampled_from([0.02, 0.1, 0.25, 0.6])


@given(audits(), MARGINS)
def test_a_verdict_keeps_its_promises(
    audit: tuple[list[bool], list[AttackResult], list[Finding]], margin: float
) -> None:
    clean, attacks, findings = audit
    decision = decide(clean, attacks, findings, margin=margin, confidence=0.95)
    assert decision.reasons
    if decision.verdict is Verdict.NOT_MASKED:
        broken = {index for attack in attacks if attack.kind != "adaptive" for index in attack.broken}
        nothing_left = clopper_pearson(sum(clean) - len(broken), sum(clean), 0.95)[1] < margin
        assert nothing_left or all(attack.status != "failed" for attack in attacks)
        assert nothing_left or UNDERMINED not in findings
        assert decision.gap is not None
        assert decision.gap.high < margin
    elif decision.verdict is Verdict.MASKED:
        assert all(attack.status == "done" for attack in attacks if attack.kind != "adaptive")
        assert decision.gap is not None
        assert decision.gap.low > 0
        assert decision.gap.estimate > margin
    if decision.images_needed is not None:
        assert decision.verdict is Verdict.INCONCLUSIVE
        assert decision.images_needed > len(clean)


@given(audits(), MARGINS, st.data())
def test_the_order_of_images_does_not_matter(
    audit: tuple[list[bool], list[AttackResult], list[Finding]], margin: float, data: st.DataObject
) -> None:
    clean, attacks, findings = audit
    order = data.draw(st.permutations(range(len(clean))))
    shuffled = [clean[index] for index in order]
    place = {index: position for position, index in enumerate(order)}
    moved = [replace(attack, broken=tuple(place[index] for index in attack.broken)) for attack in attacks]
    before = decide(clean, attacks, findings, margin=margin, confidence=0.95)
    assert decide(shuffled, moved, findings, margin=margin, confidence=0.95) == before


@pytest.mark.longer
@given(audits(), MARGINS, st.data())
def test_a_stronger_adaptive_attack_never_speaks_against_masking(
    audit: tuple[list[bool], list[AttackResult], list[Finding]], margin: float, data: st.DataObject
) -> None:
    clean, attacks, findings = audit
    which = data.draw(st.sampled_from([i for i, attack in enumerate(attacks) if attack.kind == "adaptive"]))
    skipped_early = sorted(set(attacks[which].attacked) - set(attacks[which].broken))
    assume(skipped_early and attacks[which].status == "done")
    more = data.draw(st.sets(st.sampled_from(skipped_early), min_size=1))
    stronger = [*attacks]
    stronger[which] = replace(attacks[which], broken=(*attacks[which].broken, *more))
    before = decide(clean, attacks, findings, margin=margin, confidence=0.95).verdict
    after = decide(clean, stronger, findings, margin=margin, confidence=0.95).verdict
    if before is Verdict.MASKED:
        assert after is Verdict.MASKED
    if after is Verdict.NOT_MASKED:
        assert before is Verdict.NOT_MASKED


def test_the_gap_is_a_share_of_the_correct_images() -> None:
    # 10 of 200 images are classified correctly, and adaptive attacks break them all: blatant masking.
    clean = [True] * 10 + [False] * 190
    decision = judge(200, evidence(adaptive=range(10)), clean=clean)
    assert (decision.verdict, decision.gap.estimate if decision.gap else None) == (Verdict.MASKED, 1.0)
    # 3 correct images are too few for a verdict, whatever becomes of them.
    few = [True] * 3 + [False] * 57
    for broken in ((), range(3)):
        assert judge(60, evidence(adaptive=broken), clean=few, margin=0.1).verdict is Verdict.INCONCLUSIVE


def test_where_nothing_is_left_failures_do_not_matter() -> None:
    adaptive_failed, gradient_failed = failed("square", "adaptive"), failed("fab-t", "gradient")
    for each in (adaptive_failed, gradient_failed):
        assert judge(40, [*evidence(gradient=range(40)), each]).verdict is Verdict.NOT_MASKED
        assert judge(40, [*evidence(), each]).verdict is Verdict.INCONCLUSIVE


def test_an_attack_of_the_user_waives_no_finding() -> None:
    attacks = evidence(gradient=range(40))
    assert judge(40, attacks, [UNDERMINED]).verdict is Verdict.NOT_MASKED
    attacks[0] = replace(attacks[0], by_user=True)
    assert judge(40, attacks, [UNDERMINED]).verdict is Verdict.INCONCLUSIVE
