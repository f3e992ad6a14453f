"""An audit with a deadline ends about then, says what it knows by then, and passes nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Attack, AttackResult, Defense, InputError, ThreatModel, Verdict
from pytest_gradmask.verdict.rule import decide
from tests.toys import KillGradient, audited, draw, linear, masked

pytestmark = pytest.mark.usefixtures("no_operations_found")
MANY = draw(200, 3, 8, 8, seed=5)


class Slow(nn.Module):
    """Takes its time for each image of a forward pass."""

    def __init__(self, model: nn.Module, seconds: float) -> None:
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.model(images)  # type: ignore[no-any-return]


def test_a_decision_in_time() -> None:
    for model, verdict in ((masked(KillGradient), Verdict.MASKED), (linear(), Verdict.NOT_MASKED)):
        kept, free = (
            audited(model, MANY, threat=ThreatModel(0.15), margin=0.1, deadline=deadline) for deadline in (600, None)
        )
        assert kept.verdict is free.verdict is verdict
        assert kept.gap == free.gap
        assert kept.reasons == free.reasons


@pytest.mark.longer
@pytest.mark.parametrize("seconds", [1e-3, 1.5, 4.0])
@pytest.mark.parametrize("make", [lambda: masked(KillGradient), linear], ids=["masked", "undefended"])
def test_an_audit_ends_at_its_deadline_without_a_verdict(make: Any, seconds: float) -> None:
    started = time.monotonic()
    result = audited(Slow(make(), 0.02).eval(), MANY, threat=ThreatModel(1e-3), margin=0.01, deadline=seconds)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "deadline" in result.reasons[0]
    before = audited(Slow(make(), 0.02).eval(), MANY, threat=ThreatModel(1e-3), margin=0.01, deadline=1e-3).seconds
    assert time.monotonic() - started < before + seconds + 10
    assert {attack.status for attack in result.attacks} <= {"done", "skipped", "skipped-early"}


class Ticks:
    """A clock by which each query of an attack takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("ticks", [1, 20, 40, 50, 55, 60, 65, 70, 80, 1000])
def test_bounds_so_far(ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticks()
    for module in ("attacks.oracle", "execution.deadline"):
        monkeypatch.setattr(f"pytest_gradmask.{module}.time", clock)
    settings: dict[str, Any] = {"threat": ThreatModel(0.15), "margin": 0.1}
    result = audited(masked(KillGradient), MANY[:60], deadline=ticks, **settings)
    whole = audited(masked(KillGradient), MANY[:60], **settings)
    assert whole.gap is not None
    interrupted = "deadline" in result.reasons[0]
    assert interrupted or ticks > 40
    assert not interrupted or ticks < 1000
    assert result.verdict is (Verdict.INCONCLUSIVE if interrupted else whole.verdict)
    if not interrupted:
        return
    assert "skipped-early" in {attack.status for attack in result.attacks}
    if result.gap is None:
        assert ticks < 80
        assert "could be compared" in result.reasons[0]
    else:
        assert -1 <= result.gap.low < whole.gap.high
        assert f"between {100 * result.gap.low:.3g} and" in result.reasons[0]


def test_what_was_not_tried_is_not_counted() -> None:
    """The lower bound holds whatever gradient attacks would have done to images that they had no time for."""
    adaptive = AttackResult("bpda", "adaptive", broken=tuple(range(30)), attacked=tuple(range(40)))
    placebo = AttackResult("placebo", "placebo", attacked=tuple(range(40)))
    lows = []
    for unsettled in (0, 10, 30, None):
        decision = decide(
            [True] * 40, [adaptive, placebo], [], margin=0.05, confidence=0.99, interrupted=True, unsettled=unsettled
        )
        assert decision.verdict is Verdict.INCONCLUSIVE
        assert decision.gap is not None
        lows.append(decision.gap.low)
    assert lows == sorted(lows, reverse=True)
    assert lows[0] > 0.5
    assert lows[2] < 0
    assert lows[3] == -1


def test_what_the_deadline_interrupts_is_not_cached(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"threat": ThreatModel(0.15), "margin": 0.1, "cache": tmp_path}
    model = masked(KillGradient)
    first = audited(model, MANY, deadline=1e-3, **settings)
    second = audited(model, MANY, **settings)
    assert (first.verdict, second.verdict) == (Verdict.INCONCLUSIVE, Verdict.MASKED)
    assert not second.cached


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), "10m", True])
def test_a_deadline_is_a_number_of_seconds(deadline: Any) -> None:
    with pytest.raises(InputError, match=r"deadline=.*seconds above 0"):
        audited(linear(), MANY, deadline=deadline)


def test_an_attack_that_swallows_errors() -> None:
    def stubborn(model: nn.Module, images: Tensor, _labels: Tensor, **_: Any) -> Tensor:
        for _query in range(400):
            try:
                model(images)
            except Exception:  # also the error that ends an audit, which is what this attack is for
                torch.zeros(1)
        return images

    defense = Defense(Slow(linear(), 0.05).eval(), attacks=[Attack(stubborn, kind="gradient")])
    started = time.monotonic()
    result = audited(defense, MANY[:20], threat=ThreatModel(1e-6), margin=0.1, deadline=1.0)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert time.monotonic() - started < 15
