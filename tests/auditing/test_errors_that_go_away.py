"""A defense that raises once: wherever in an audit that happens, the audit says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Audit, Defense, ThreatModel, Verdict, audit
from pytest_gradmask.errors import DefenseError, GradmaskError
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


class RaisesAsASet:
    """A norm ball of the user's: each of its methods counts as a call."""

    def __init__(self, countdown: Countdown, eps: float) -> None:
        self.countdown, self.ball, self.eps, self.bounds = countdown, ThreatModel(eps), eps, (0.0, 1.0)

    def project(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        self.countdown.tick()
        return self.ball.project(perturbed, images)

    def random_start(self, images: Tensor, generator: torch.Generator, /) -> Tensor:
        self.countdown.tick()
        return self.ball.random_start(images, generator)

    def step(self, gradient: Tensor, *, at: Tensor | None = None) -> Tensor:
        self.countdown.tick()
        return self.ball.step(gradient, at=at)

    def contains(self, perturbed: Tensor, images: Tensor, /) -> Tensor:
        self.countdown.tick()
        return self.ball.contains(perturbed, images)


class Rejects:
    """Rejects nothing; each call counts."""

    def __init__(self, countdown: Countdown) -> None:
        self.countdown = countdown

    def __call__(self, outputs: Tensor) -> Tensor:
        self.countdown.tick()
        return outputs.softmax(1).amax(1) < 0.1


def is_visible(found: Audit) -> bool:
    """Whether anything in the result of an audit says what was raised."""
    said = [finding.message for finding in found.findings] + [attack.note for attack in found.attacks]
    return any("flaky" in words for words in said)


def outcomes(run: Callable[[Countdown], Audit], first: int, step: int) -> Iterator[tuple[int, Audit | GradmaskError]]:
    """What an audit ends with where one of the calls raises, for every so many of them."""
    countdown = Countdown()
    countdown.at = first
    while True:
        countdown.calls = 0
        found: Audit | GradmaskError
        try:
            found = run(countdown)
        except GradmaskError as error:
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
    def run(countdown: Countdown) -> Audit:
        return audit(make(countdown, MODEL).eval(), IMAGES, LABELS, threat=ThreatModel(eps), budget=TINY)

    hidden, seen = [], 0
    for call, found in outcomes(run, first, step):
        seen += 1
        if isinstance(found, GradmaskError):
            visible = isinstance(found, DefenseError) and "flaky" in str(found)
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


EVERY = [(2, 23), pytest.param(1, 1, marks=pytest.mark.nightly)]


@pytest.mark.parametrize(("first", "step"), EVERY, ids=["few calls", "all calls"])
@pytest.mark.parametrize("model", [MODEL, nn.Sequential(KillGradient(), MODEL)], ids=["honest", "masked"])
def test_an_error_of_a_set(
    model: nn.Module, first: int, step: int, record_property: Callable[[str, object], None]
) -> None:
    """It is not blamed on the defense."""

    def run(countdown: Countdown) -> Audit:
        return audit(model.eval(), IMAGES, LABELS, threat=RaisesAsASet(countdown, 0.1), budget=TINY)

    ended = list(outcomes(run, first, step))
    assert ended
    for _, found in ended:
        if isinstance(found, GradmaskError):
            assert re.match(r"threat: \w+\(\) raised RuntimeError: flaky", str(found))
        else:
            notes = [attack.note for attack in found.attacks if "flaky" in attack.note]
            assert notes
            assert all(note.startswith("InputError: threat: ") for note in notes)
    record_property("tries", len(ended))
    record_property("result", "each error names the method of the set")


@pytest.mark.parametrize(("first", "step"), EVERY, ids=["few calls", "all calls"])
def test_an_error_of_a_reject_option(first: int, step: int, record_property: Callable[[str, object], None]) -> None:
    def run(countdown: Countdown) -> Audit:
        return audit(
            Defense(MODEL.eval(), rejects=Rejects(countdown)), IMAGES, LABELS, threat=ThreatModel(0.1), budget=TINY
        )

    ended = list(outcomes(run, first, step))
    assert ended
    for _, found in ended:
        said = [str(found)] if isinstance(found, GradmaskError) else [finding.message for finding in found.findings]
        said += [] if isinstance(found, GradmaskError) else [attack.note for attack in found.attacks]
        assert any(re.search(r"rejects.* raised RuntimeError.*flaky", words) for words in said)
    record_property("tries", len(ended))
    record_property("result", "each error names the reject option")


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
