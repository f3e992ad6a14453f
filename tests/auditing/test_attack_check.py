"""The attack check: where nothing is found, an attack has to pass the binarization test."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from pytest_gradmask import Defense, Finding, ThreatModel, Verdict
from pytest_gradmask.auditing import attack_check, audit_run
from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.binarization.run import BinarizationTest
from pytest_gradmask.binarization.single_image import Outcome
from pytest_gradmask.verdict.paired import upper_bound
from tests.toys import (
    IMAGES,
    KillGradient,
    audited,
    draw,
    linear,
    masked,
)

pytestmark = pytest.mark.usefixtures("no_operations_found")


@pytest.mark.parametrize(("bypass", "verdict"), [([], Verdict.INCONCLUSIVE), (["0"], Verdict.NOT_MASKED)])
def test_where_nothing_is_found_an_attack_has_to_pass(
    bypass: list[str], verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_run, "probe_defense", lambda *_, **__: [])  # the test alone has to see it
    result = audited(Defense(masked(KillGradient), bypass=bypass), threat=ThreatModel(1e-6))
    assert result.robust_accuracy.value == 1
    assert result.verdict is verdict
    found = [finding.message for finding in result.findings if finding.id == "attack-fails-binarization-test"]
    assert found == ([] if bypass else ["of adversarial examples embedded in this defense, apgd-ce finds 0 of 8"])


class Times(nn.Module):
    """Multiplies logits."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return 1e6 * logits


def test_where_the_softmax_saturates_another_loss_may_pass() -> None:
    result = audited(nn.Sequential(linear(), Times()).eval(), threat=ThreatModel(1e-6))
    assert "saturated-logits" in [finding.id for finding in result.findings]
    assert result.verdict is Verdict.NOT_MASKED


@pytest.mark.parametrize("saturated", [False, True])
def test_another_loss_where_the_gradient_is_masked(saturated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding("saturated-logits", "")] if saturated else []
    monkeypatch.setattr(audit_run, "probe_defense", lambda *_, **__: found)  # the test alone has to see the mask
    result = audited(Defense(masked(KillGradient), bypass=[]), threat=ThreatModel(1e-6))
    assert result.verdict is Verdict.INCONCLUSIVE
    (failed,) = [finding.message for finding in result.findings if finding.id == attack_check.ATTACK_FAILS]
    assert ("apgd-t finds 0 of 8" in failed) == saturated


def test_attacks_that_cannot_be_tested_have_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_check, "binarization_test", Mock(side_effect=RuntimeError("no last layer")))
    result = audited(linear(), threat=ThreatModel(1e-6))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "apgd-ce cannot be tested (RuntimeError: no last layer)" in " ".join(result.reasons)
    # Where nothing is left to attack, there is nothing to test.
    assert audited(linear(), threat=ThreatModel(0.15)).verdict is Verdict.NOT_MASKED


def test_an_attack_check_on_few_images_says_so() -> None:
    result = audited(linear(), images=IMAGES[:3], threat=ThreatModel(1e-6), margin=0.9, confidence=0.6)
    assert result.verdict is Verdict.INCONCLUSIVE
    expected = [finding.message for finding in result.findings]
    assert expected == ["of adversarial examples embedded in this defense, apgd-ce finds 3 of 3, too few to decide"]


@pytest.mark.parametrize(
    ("testable", "misses", "counts", "said"),
    [
        (1, 0, [8], None),
        (5, 0, [8, 24, 72], None),  # 2, 5 and 15 of the images can be tested
        (5, 1, [8, 24], "finds 4 of 5, too few to decide"),
        (36, 0, [8, 24, 72], "finds 2 of 2, too few to decide"),
        (1, 8, [8], "finds 0 of 8"),
    ],
)
def test_more_images_are_tried_where_few_can_be_tested(
    testable: int, misses: int, counts: list[int], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def tested(_: Any, __: Any, images: torch.Tensor, *___: Any, **____: Any) -> BinarizationTest:
        asked.append(len(images))
        outcomes: list[Outcome] = ["trivial" if index % testable else "passed" for index in range(len(images))]
        for index in [index for index, outcome in enumerate(outcomes) if outcome == "passed"][:misses]:
            outcomes[index] = "failed"
        return BinarizationTest(outcomes=tuple(outcomes), confidence=0.99)

    monkeypatch.setattr(attack_check, "binarization_test", tested)
    result = audited(linear(), images=draw(100, 3, 8, 8), threat=ThreatModel(1e-6), exhaustive=True)
    found = [finding.message for finding in result.findings if finding.id == attack_check.ATTACK_FAILS]
    assert asked == counts
    assert (said is None) == (found == [])
    assert said is None or said in found[0]


@pytest.mark.parametrize("margin", [budget.margin for budget in BUDGETS.values()])
def test_images_of_an_attack_check(margin: float) -> None:
    """A ``NOT_MASKED`` takes more than twice the 7 images of a pass, so small audits do not end for want of them."""
    assert upper_bound(0, 0, 14, 0.99, margin=margin) > margin
    passed: tuple[Outcome, ...] = ("passed",) * 7
    assert BinarizationTest(outcomes=passed, confidence=0.99).ok
