"""A defense that raises once: wherever in an audit that happens, the audit says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Audit, ThreatModel, Verdict, audit
from pytest_gradmask.errors import DefenseError
from pytest_gradmask.execution.second_try import at_second_try, faults_noticed
from tests.toys import IMAGES, TINY, KillGradient, linear, predictions

MODEL = linear(seed=2)
LABELS = predictions(MODEL, IMAGES)


class Countdown:
    """Raises at one of the calls, of all copies of a defense together."""

    def __init__(self) -> None:
        self.calls = self.at = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Countdown:
        return self

    def tick(self) -> None:
        """Count a call; raise at the one that is due."""
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("flaky")


class RaisesForward(nn.Module):
    def __init__(self, countdown: Countdown, *modules: nn.Module) -> None:
        super().__init__()
        self.countdown, self.model = countdown, nn.Sequential(*modules)

    def forward(self, images: Tensor) -> Tensor:
        self.countdown.tick()
        return self.model(images)  # type: ignore[no-any-return]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, countdown: Countdown) -> Tensor:
        ctx.countdown = countdown
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.countdown.tick()
        return gradients[0], None


class RaisesBackward(RaisesForward):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(_Backward.apply(images, self.countdown))  # type: ignore[no-any-return]


def is_visible(found: Audit) -> bool:
    """Whether anything in the result of an audit says what was raised."""
    said = [finding.message for finding in found.findings] + [attack.note for attack in found.attacks]
    return any("flaky" in words for words in said)


def outcomes(
    make: Callable[..., nn.Module], eps: float, first: int, step: int
) -> Iterator[tuple[int, Audit | DefenseError]]:
    """What an audit ends with where the defense raises at a call, for every so many of its calls."""
    countdown = Countdown()
    countdown.at = first
    while True:
        countdown.calls = 0
        found: Audit | DefenseError
        try:
            found = audit(make(countdown, MODEL).eval(), IMAGES, LABELS, threat=ThreatModel(eps), budget=TINY)
        except DefenseError as error:
            found = error
        if countdown.calls < countdown.at:
            return
        yield countdown.at, found
        countdown.at += step


@pytest.mark.parametrize("make", [RaisesForward, RaisesBackward])
@pytest.mark.parametrize("eps", [1e-6, 0.1], ids=["robust", "weak"])
@pytest.mark.parametrize(
    ("first", "step"),
    [(5, 41), pytest.param(1, 4, marks=pytest.mark.longer), pytest.param(1, 1, marks=pytest.mark.nightly)],
    ids=["few calls", "some calls", "all calls"],
)
def test_an_error_that_is_raised_once(
    make: Callable[..., nn.Module], eps: float, first: int, step: int, record_property: Callable[[str, object], None]
) -> None:
    hidden, seen = [], 0
    for call, found in outcomes(make, eps, first, step):
        seen += 1
        if isinstance(found, DefenseError):
            visible = "flaky" in str(found)
        else:
            visible = is_visible(found)
            assert found.verdict is not Verdict.MASKED
            # Where gradient attacks break all images, nothing is left that could be hidden.
            assert found.verdict is Verdict.INCONCLUSIVE or eps > 0.01
        if not visible:
            hidden.append(call)
    assert seen
    assert hidden == []
    record_property("tries", seen)
    record_property("result", f"{make.__name__}, at eps {eps:g}: each error is in the report")


def test_an_honest_defense_raises_nothing() -> None:
    for eps in (1e-6, 0.1):
        found = audit(RaisesForward(Countdown(), MODEL).eval(), IMAGES, LABELS, threat=ThreatModel(eps), budget=TINY)
        assert found.verdict is Verdict.NOT_MASKED
        assert found.findings == ()


class OnlyWithoutAutograd(RaisesForward):
    """Rounds while no gradient is wanted, and raises once."""

    def forward(self, images: Tensor) -> Tensor:
        images = images if torch.is_grad_enabled() else (images * 4).round() / 4
        return super().forward(images)


@pytest.mark.longer
def test_an_error_while_it_is_asked_in_several_ways() -> None:
    labels = predictions(OnlyWithoutAutograd(Countdown(), MODEL).eval(), IMAGES)
    countdown, wrong = Countdown(), []
    for countdown.at in range(36, 76, 2):  # while it is asked in several ways
        countdown.calls = 0
        try:
            found = audit(
                OnlyWithoutAutograd(countdown, MODEL).eval(), IMAGES, labels, threat=ThreatModel(0.1), budget=TINY
            )
        except DefenseError:
            continue
        if found.verdict is Verdict.NOT_MASKED:
            wrong.append(countdown.at)
    assert wrong == []


def test_a_mask_stays_a_mask() -> None:
    countdown = Countdown()
    countdown.at = 40
    defense = RaisesForward(countdown, KillGradient(), MODEL).eval()
    found = audit(defense, IMAGES, LABELS, threat=ThreatModel(0.1), budget=TINY)
    assert found.verdict is Verdict.MASKED
    assert is_visible(found)


def test_the_second_try() -> None:
    def fails(times: int, error: Exception) -> Callable[[], int]:
        calls = []

        def part() -> int:
            calls.append(1)
            if len(calls) <= times:
                raise error
            return len(calls)

        return part

    flaky = RuntimeError("flaky")
    with pytest.raises(RuntimeError, match="flaky"):
        at_second_try(fails(1, flaky))  # nobody notices
    faults: list[str] = []
    with faults_noticed(faults):
        assert at_second_try(fails(0, flaky)) == 1
        assert faults == []
        assert at_second_try(fails(1, flaky)) == 2
        assert faults == ["RuntimeError: flaky"]
        with pytest.raises(RuntimeError, match="flaky"):
            at_second_try(fails(2, flaky))
        with pytest.raises(MemoryError):
            at_second_try(fails(1, MemoryError()))
    assert faults == ["RuntimeError: flaky"]
    with pytest.raises(RuntimeError, match="flaky"):
        at_second_try(fails(1, flaky))
