"""Detectors: rejected adversarial images are not broken, and joint attacks fool classifier and detector at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.defense import Attack, Defense
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Verdict
from tests.auditing.detector_toys import REJECTED, TwoHalves, agreeing, detector_audit, perfect_audit
from tests.toys import Detach, KillGradient, Noisy, Quantize, audited, draw, linear

pytestmark = pytest.mark.usefixtures("no_operations_found")


def test_nothing_breaks_a_perfect_detector() -> None:
    audit = perfect_audit(declared=True)
    assert audit.clean_accuracy.value == 1
    assert audit.robust_accuracy.value >= 0.95
    assert audit.attack("pgd").rejected == 60
    assert audit.verdict is not Verdict.MASKED


def test_an_undeclared_reject_class_is_asked_about() -> None:
    audit = perfect_audit(declared=False)
    assert audit.robust_accuracy.value == 0
    assert "unused-class" in {finding.id for finding in audit.findings}


@pytest.mark.longer
@pytest.mark.parametrize("front_end", [Detach, Quantize, KillGradient])
def test_a_detector_with_a_masked_gradient(front_end: Callable[[], nn.Module]) -> None:
    audit = detector_audit(Defense(TwoHalves(front_end()).eval(), rejects=REJECTED), budget="smoke", margin=0.05)
    assert audit.verdict is Verdict.MASKED
    assert len(audit.attack("bpda").broken) > 0


@pytest.mark.longer
def test_an_honest_detector() -> None:
    audit = detector_audit(Defense(TwoHalves().eval(), rejects=REJECTED), budget="smoke", margin=0.25)
    assert audit.verdict is Verdict.NOT_MASKED
    assert audit.gradient_accuracy.value < 0.2


def test_a_score_is_as_good_as_a_class() -> None:
    def score(outputs: Tensor) -> Tensor:
        return outputs[:, REJECTED] - outputs[:, :REJECTED].amax(1)

    class Rest(nn.Module):
        def forward(self, outputs: Tensor) -> Tensor:
            return outputs - 100 * (torch.arange(5) == REJECTED)

    # The same detector, whose fifth output is not a class: it is never the largest.
    images, labels = agreeing(24)
    model = nn.Sequential(TwoHalves(), Rest()).eval()
    audit = audited(
        Defense(model, rejects=lambda outputs: score(outputs + 100 * (torch.arange(5) == REJECTED))),
        images, labels=labels, threat=ThreatModel(0.06),
    )  # fmt: skip
    assert audit.clean_accuracy.value == 1
    assert audit.gradient_accuracy.value < 0.5


def test_decisions_alone_are_scored_but_never_not_masked() -> None:
    images = draw(40, 3, 8, 8)
    model = linear()
    # It accepts only answers of low confidence, which no step of full size has.
    limit = model(images).detach().softmax(1).amax(1).quantile(0.8).item()
    defense = Defense(model, rejects=lambda logits: logits.softmax(1).amax(1) > limit)
    audit = audited(defense, images, threat=ThreatModel(0.01))
    assert "rejection-without-score" in {finding.id for finding in audit.findings}
    assert audit.verdict is Verdict.INCONCLUSIVE


def test_rejected_clean_images_are_not_attacked() -> None:
    images = draw(40, 3, 8, 8)
    model = linear()
    limit = model(images).detach().softmax(1).amax(1).quantile(0.25).item()
    audit = audited(Defense(model, rejects=lambda logits: limit - logits.softmax(1).amax(1)), images)
    assert audit.clean_accuracy.count == 30
    assert audit.clean_rejected is not None
    assert audit.selective_accuracy is not None
    assert (audit.clean_rejected.count, audit.selective_accuracy.count, audit.selective_accuracy.total) == (10, 30, 30)
    assert all(not audit.clean[index] for index, rejected in enumerate(audit.rejected) if rejected)
    assert max(len(result.attacked) for result in audit.attacks) == 30
    assert "clean-rejections" in {finding.id for finding in audit.findings}


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_place_of_the_reject_class_is_free(place: int) -> None:
    class Moved(nn.Module):
        def forward(self, outputs: Tensor) -> Tensor:
            order = list(range(4))
            return outputs[:, [*order[:place], 4, *order[place:]]]

    images, labels = agreeing(24)
    model = nn.Sequential(TwoHalves(), Moved()).eval()
    audit = audited(
        Defense(model, rejects=place), images, labels=labels + (labels >= place).long(), threat=ThreatModel(0.06)
    )
    assert audit.clean_accuracy.value == 1
    assert 0 < audit.robust_accuracy.value < 1


@pytest.mark.longer
def test_user_attacks_get_one_label_at_a_time() -> None:
    calls: list[tuple[int, int]] = []

    def run(model: nn.Module, images: Tensor, labels: Tensor, **_: object) -> Tensor:
        calls.append((len(labels.unique()), model(images).shape[1]))
        return images

    images, labels = agreeing(24)
    defense = Defense(TwoHalves().eval(), rejects=REJECTED, attacks=[Attack(run)])
    audited(defense, images, labels=labels, threat=ThreatModel(0.06), exhaustive=True)
    assert set(calls) == {(1, 4)}


@pytest.mark.longer
def test_randomized_detectors() -> None:
    images, labels = agreeing(24)
    defense = Defense(Noisy(TwoHalves(), 0.1).eval(), rejects=REJECTED)
    audit = audited(defense, images, labels=labels, threat=ThreatModel(0.06))
    assert audit.clean_accuracy.value > 0.5
    assert audit.gradient_accuracy.value < audit.clean_accuracy.value
    assert not [result.note for result in audit.attacks if result.status == "failed"]


def test_the_cache_keeps_rejections(tmp_path: Path) -> None:
    images, labels = agreeing(24)
    defense = Defense(TwoHalves().eval(), rejects=REJECTED)
    first, second = (
        audited(defense, images, labels=labels, threat=ThreatModel(0.06), cache=tmp_path) for _ in range(2)
    )
    assert second.cached
    assert (second.rejected, second.clean) == (first.rejected, first.clean)
