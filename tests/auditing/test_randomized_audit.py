"""Audits of randomized ensembles from end to end, with their members known and unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.auditing.run import audit
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.loading.models.composites import Mixture, RandomizedEnsemble
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Verdict
from tests.toys import TINY, KillGradient, draw, linear

IMAGES = draw(24, 3, 8, 8)


def labels(members: list[nn.Module], weights: tuple[float, ...] | None = None) -> torch.Tensor:
    right: torch.Tensor = Mixture(members, weights)(IMAGES).argmax(1)
    return right


def audited(defense: Defense | nn.Module, right: torch.Tensor, **arguments: Any) -> Audit:
    settings: dict[str, Any] = {"threat": ThreatModel(0.1), "budget": TINY, "exhaustive": True}
    return audit(defense, IMAGES, right, **settings | arguments)


def honest() -> list[nn.Module]:
    """Members that mostly agree: their mean and a little of their own."""
    first, second = linear(seed=0), linear(seed=1)
    with torch.no_grad():
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            other.copy_(0.9 * one + 0.1 * other)
    return [first, second]


def killed() -> list[nn.Module]:
    return [nn.Sequential(KillGradient(), member).eval() for member in honest()]


@pytest.mark.parametrize("each_image", [False, True], ids=["each batch", "each image"])
def test_a_masked_ensemble_with_known_members(each_image: bool) -> None:
    members, weights = killed(), (0.8, 0.2)
    model = RandomizedEnsemble(members, weights, each_image=each_image).eval()
    found = audited(Defense(model, members=members, weights=weights), labels(members, weights))
    assert found.verdict is Verdict.MASKED
    names = {result.name for result in found.attacks if result.status == "done"}
    assert {"apgd-ce", "apgd-dlr", "apgd-eot", "bpda", "bpda-members", "joint-margins", "arc", "square"} <= names
    chances = {round(predictions.correct, 9) for result in found.attacks for predictions in result.predictions.values()}
    assert chances <= {0.0, 0.2, 0.8, 1.0}
    assert all(predictions.number == 0 for predictions in found.predictions.values())
    assert found.accuracy_under("arc").value < 0.1
    assert found.gradient_accuracy.value > 0.6  # the noise of random starts breaks some


@pytest.mark.longer
def test_a_masked_ensemble_with_unknown_members() -> None:
    members = killed()
    found = audited(RandomizedEnsemble(members).eval(), labels(members))
    assert found.verdict is Verdict.MASKED
    assert {result.name for result in found.attacks} >= {"apgd-eot", "bpda"}
    assert "arc" not in {result.name for result in found.attacks}
    assert all(predictions.number > 0 for predictions in found.predictions.values())
    assert found.rand_claim is not None


@pytest.mark.parametrize("known", [True, False])
def test_an_honest_ensemble_is_not_masked(known: bool) -> None:
    members = honest()
    model = RandomizedEnsemble(members).eval()
    found = audited(Defense(model, members=members) if known else model, labels(members))
    assert found.verdict is Verdict.NOT_MASKED
    assert found.robust_accuracy.value < 0.2


@pytest.mark.longer
def test_the_same_seed_gives_the_same_audit() -> None:
    members = killed()
    model = RandomizedEnsemble(members).eval()
    first, second = (replace(audited(model, labels(members)), seconds=0.0, attacks=(), provenance={}) for _ in range(2))
    assert first == second


def test_members_that_do_not_answer_leave_a_finding() -> None:
    class Jittered(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(images)
            return logits + 3 * torch.rand(1)

    members = honest()
    # A shift of all logits changes no answer, but no member gives it.
    found = audited(Defense(Jittered(RandomizedEnsemble(members)).eval(), members=members), labels(members))
    assert "members-do-not-answer" in [finding.id for finding in found.findings]
    assert all(predictions.number > 0 for predictions in found.predictions.values())


def test_wrong_weights_are_an_error() -> None:
    members = [linear(seed=0), linear(seed=5)]
    model = RandomizedEnsemble(members, (0.9, 0.1)).eval()
    with pytest.raises(DefenseError, match="weights: member 0 answers"):
        audited(Defense(model, members=members), labels(list(members)))


def test_members_may_share_a_module() -> None:
    front = KillGradient()
    members: list[nn.Module] = [nn.Sequential(front, member).eval() for member in honest()]
    found = audited(Defense(RandomizedEnsemble(members).eval(), members=members), labels(members))
    assert found.verdict is Verdict.MASKED
    assert found.accuracy_under("bpda").value < 0.1
