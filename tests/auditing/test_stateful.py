"""Attacks on a stateful defense begin with a fresh copy of it, and fresh copies score what they return."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Attack, Defense
from pytest_gradmask.auditing.run import audit
from pytest_gradmask.execution.first_state import FirstState
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Verdict
from tests.execution.test_engine import Elsewhere
from tests.toys import IMAGES, THREAT, TINY, Counting, Noisy, Quantize, linear, masked, predictions, seeded, timeless

pytestmark = pytest.mark.usefixtures("no_operations_found")

LABELS = predictions(linear(), IMAGES)
#: No two of the images are as near to each other.
RADIUS = 0.3
#: Leaves most images unbroken, so that attacks ask much.
WEAK = ThreatModel(0.002)


class Memory(nn.Module):
    """Answers what is near an earlier query as it answered that one, or else with noise.

    Args:
        garbage: whether a query that is near an earlier one gets noise.
    """

    def __init__(self, *, garbage: bool = False) -> None:
        super().__init__()
        self.backbone, self.garbage = linear(), garbage
        self.queries: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(images)
        if self.queries:
            distances = (images.detach()[:, None] - torch.cat(self.queries)).abs().flatten(2).amax(2)
            known = torch.cat(self.answers)[distances.argmin(1)]
            if self.garbage:
                known = torch.randn(known.shape, generator=torch.Generator().manual_seed(len(self.queries)))
            logits = torch.where((distances.amin(1) <= RADIUS)[:, None], known, logits)
        self.queries.append(images.detach().clone())
        self.answers.append(logits.detach().clone())
        return logits


def audited(defense: nn.Module | Defense, **arguments: Any) -> Audit:
    """An audit with the labels of the backbone, which asks the defense nothing before."""
    return audit(defense, IMAGES, LABELS, **{"threat": THREAT, "budget": TINY, **arguments})


def of_id(audit: Audit, name: str) -> list[str]:
    return [finding.message for finding in audit.findings if finding.id == name]


def test_a_memory_that_stops_gradient_attacks_is_masking() -> None:
    model = Memory().eval()
    result = audited(model)
    assert result.verdict is Verdict.MASKED
    assert result.clean_accuracy.value == 1
    assert result.gradient_accuracy.value > 0.7
    assert result.accuracy_under("apgd-fresh").value == 0
    assert of_id(result, "randomized") == []
    [message] = of_id(result, "stateful")
    assert "each attack ran on a fresh copy, and fresh copies scored what it returned" in message
    assert model.queries == []


def test_without_its_memory_nothing_is_masked() -> None:
    result = audited(linear())
    assert result.verdict is Verdict.NOT_MASKED
    assert result.gradient_accuracy.value == 0
    assert "apgd-fresh" not in [attack.name for attack in result.attacks]


def test_noise_for_known_queries_harms_no_figure() -> None:
    result = audited(Memory(garbage=True).eval(), exhaustive=True)
    assert result.clean_accuracy.value == 1
    assert result.accuracy_under("apgd-fresh").value == 0
    assert result.verdict is not Verdict.NOT_MASKED  # a fresh copy is not the defense in use
    assert len(of_id(result, "stateful")) == 1
    assert of_id(result, "randomized") == []


def unchanged(model: nn.Module, images: Tensor, *_: Any, **__: Any) -> Tensor:
    """Asks once, and returns the clean images."""
    model(images)
    return images


@pytest.mark.longer
def test_no_attack_sees_what_others_asked() -> None:
    corners = []

    def corner(model: nn.Module, images: Tensor, *_: Any, **__: Any) -> Tensor:
        signs = torch.randint(0, 2, images.shape, generator=seeded()).to(images) * 2 - 1
        points = THREAT.project(images + THREAT.eps * signs, images)
        corners.append((points, model(points).detach()))
        return images

    for kind in ("gradient", "adaptive"):
        corners.clear()
        attacks = [Attack(unchanged, "first", kind), Attack(corner, "second", kind)]
        audited(Defense(Memory().eval(), attacks=attacks), exhaustive=True)
        assert corners
        for points, answers in corners:
            with torch.no_grad():
                assert torch.equal(answers, linear()(points))


@pytest.mark.parametrize("kind", ["gradient", "adaptive"])
def test_only_an_adaptive_attack_asks_a_fresh_copy_each_time(kind: Any) -> None:
    same = []

    def twice(model: nn.Module, images: Tensor, *_: Any, **__: Any) -> Tensor:
        near = THREAT.project(images + 0.05, images)
        model(images)
        with torch.no_grad():
            same.append(torch.equal(model(near), linear()(near)))
        return images

    audited(Defense(Memory().eval(), attacks=[Attack(twice, kind=kind)]), exhaustive=True)
    assert same[-1] == (kind == "adaptive")


class Tiring(nn.Module):
    """Robust after a number of calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.backbone, self.left = linear(), calls

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        return self.backbone(images if self.left > 0 else torch.round(images * 4) / 4)  # type: ignore[no-any-return]


def test_a_state_that_shows_after_the_attacks_repeats_the_audit() -> None:
    events: list[str] = []
    result = audited(Tiring(150).eval(), threat=WEAK, progress=lambda event: events.append(str(event)))
    [message] = of_id(result, "stateful")
    assert message.startswith("after the attacks")
    assert "each attack ran on a fresh copy" in message
    assert "Tiring is stateful: all over again, on fresh copies" in events
    assert result.verdict is Verdict.INCONCLUSIVE


CALLS = 0


class Outside(Tiring):
    """As `Tiring`, but the count is a global variable."""

    def forward(self, images: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        self.left = 150 - CALLS
        return super().forward(images)


def test_a_state_outside_of_the_model_cannot_be_put_back() -> None:
    result = audited(Outside(0).eval(), threat=WEAK)
    [message] = of_id(result, "stateful")
    assert message.startswith("after the attacks")
    assert "fresh copy" not in message
    assert "apgd-fresh" not in [attack.name for attack in result.attacks]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(linear, id="deterministic"),
        pytest.param(lambda: Noisy(linear(), 0.2).eval(), id="randomized"),
        pytest.param(lambda: masked(Quantize), id="masked"),
        pytest.param(lambda: Counting(linear()).eval(), id="counts without effect"),
    ],
)
def test_a_stateless_defense_is_never_put_back(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back = Mock(side_effect=AssertionError)
    monkeypatch.setattr(FirstState, "put_back", put_back)
    result = audited(build())
    assert put_back.call_count == 0
    assert of_id(result, "stateful") == []


@pytest.mark.longer
def test_every_engine_and_every_run_gives_the_same() -> None:
    local, model = timeless(audited(Memory().eval())), Memory().eval()
    for engine in ("local", Elsewhere()):
        assert timeless(audited(model, engine=engine)) == local  # the model is as it was, so that it may be asked again
