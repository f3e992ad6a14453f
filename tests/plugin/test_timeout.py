"""``--gradmask-timeout``: a defense that hangs ends its audit, and no other."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.errors import AuditTimeoutError, InputError
from pytest_gradmask.execution.time_limit import TimeIsUp, queries_end_after
from pytest_gradmask.plugin import timeout
from pytest_gradmask.plugin.timeout import time_limit
from tests.plugin.test_reporting import DEFENSES, RUN, read
from tests.toys import IMAGES, audited, linear, oracle

HANGING = (
    DEFENSES
    + """
    import time

    class Hangs(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.calls = linear(), 0

        def forward(self, images):
            self.calls += 1
            if self.calls > 25:
                try:
                    time.sleep(3600)
                except Exception:  # a timeout is none
                    pass
            return self.model(images)

    def test_hanging(gradmask):
        model = Hangs().eval()
        try:
            gradmask.audit(model, *batch(linear()))
        finally:
            assert all(parameter.requires_grad for parameter in model.parameters())
            assert torch.is_grad_enabled()

    def test_other(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model)))
"""
)


@pytest.mark.longer
def test_a_hanging_defense_is_inconclusive(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=HANGING)
    pytester.makeini("[pytest]\ngradmask_timeout = 3600")
    result = pytester.runpytest(*RUN, "--gradmask-timeout=15", "--gradmask-json=out.json")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*time.sleep(3600)*", "*AuditTimeoutError: the audit has taken more than 15 s (--gradmask-timeout).*"]
    )
    hanging, other = read(pytester.path / "out.json")
    assert hanging["verdict"] == "INCONCLUSIVE"
    assert "AuditTimeoutError" in hanging["reasons"][0]
    assert other["verdict"] == "NOT_MASKED"


STOPPED = (
    DEFENSES
    + """
    class Stops(nn.Module):
        def __init__(self, stop):
            super().__init__()
            self.model, self.stop = linear(), stop

        def forward(self, images):
            if images.shape[0] < 3:
                self.stop("from outside")
            return self.model(images)

    @pytest.mark.parametrize("stop", [pytest.fail, sys.exit, pytest.skip])
    def test_stopped(gradmask, stop):
        gradmask.audit(Stops(stop).eval(), *batch(linear()))
"""
)


def test_what_another_plugin_stops_is_inconclusive(pytester: pytest.Pytester) -> None:
    # As pytest-timeout does: what it raises is no `Exception`.
    pytester.makepyfile(test_it="    import sys, pytest\n" + STOPPED)
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json")
    result.assert_outcomes(failed=2, skipped=1)
    audits = read(pytester.path / "out.json")
    assert {audit["verdict"] for audit in audits} == {"INCONCLUSIVE"}
    assert {audit["reasons"][0]: audit["error"] for audit in audits} == {
        "the audit raised Failed: from outside": None,
        "the audit raised SystemExit: from outside": "SystemExit",
    }


def spin() -> None:
    while True:
        pass


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(60), threading.Event().wait])
def test_what_hangs_ends(hang: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(AuditTimeoutError, match=r"more than 0.2 s .*run again with more time"), time_limit(0.2):
        hang()
    assert time.monotonic() - started < 30


def swallowed_once() -> None:
    with suppress(BaseException):
        time.sleep(60)


def swallowed_again_and_again() -> None:
    for _ in range(5):
        swallowed_once()


def turned_into_another_error() -> None:
    try:
        time.sleep(60)
    except BaseException as error:
        raise ValueError("not a timeout") from error


SWALLOWED = [swallowed_once, swallowed_again_and_again, turned_into_another_error]


@pytest.mark.parametrize("hang", SWALLOWED)
def test_what_swallows_the_alarm_ends_all_the_same(hang: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(AuditTimeoutError), time_limit(0.2):
        hang()
    assert time.monotonic() - started < 10


def test_no_second_alarm_disturbs_what_restores_a_state() -> None:
    restored: list[bool] = []
    code = compile("try:\n    sleep(60)\nfinally:\n    sleep(1)\n    restored.append(True)", timeout.__file__, "exec")
    with pytest.raises(AuditTimeoutError), time_limit(0.2):
        exec(code, {"sleep": time.sleep, "restored": restored})
    assert restored == [True]


class Swallows(nn.Module):
    """Waits in each forward after the first few, and swallows whatever ends that."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.calls = linear(), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 25:
            with suppress(BaseException):
                time.sleep(2)
        return self.model(images)  # type: ignore[no-any-return]


@pytest.mark.longer
def test_a_defense_that_swallows_the_alarm_is_restored() -> None:
    model = Swallows().eval()
    started = time.monotonic()
    with pytest.raises(AuditTimeoutError), time_limit(4):
        audited(model, labels=torch.zeros(24, dtype=torch.long))
    assert time.monotonic() - started < 15
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_without_signals_the_next_query_ends_it() -> None:
    asked = oracle(linear())
    with queries_end_after(0.1):
        asked(IMAGES)
        time.sleep(0.2)
        with pytest.raises(TimeIsUp):
            asked(IMAGES)
    asked(IMAGES)


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(60):
        pass
    with time_limit(None):
        pass
    with pytest.raises(ValueError, match="mine"), time_limit(60):
        raise ValueError("mine")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_timer_of_another_plugin_goes_on() -> None:
    with other_timer(lambda rung: rung.append(True), 100) as rung:
        with time_limit(50):
            time.sleep(0.1)
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 99.9
        signal.raise_signal(signal.SIGALRM)
    assert rung


@contextmanager
def other_timer(handler: Callable[..., object], seconds: float) -> Iterator[list[bool]]:
    """A timer of another plugin, and a list for its handler."""
    rung: list[bool] = []
    before = signal.signal(signal.SIGALRM, lambda *_: handler(rung))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_timer_of_another_plugin_rings_inside() -> None:
    def fails(rung: list[bool]) -> None:
        rung.append(True)
        raise TimeoutError("the other's")

    with other_timer(fails, 0.2) as rung:
        with pytest.raises(TimeoutError, match="the other's"), time_limit(60):
            time.sleep(30)
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)  # it rings once
    assert rung == [True]


def test_our_timer_after_that_of_another_plugin() -> None:
    """Our time is up after the timer of another plugin has rung."""
    with other_timer(lambda rung: rung.append(True), 0.1) as rung:
        with pytest.raises(AuditTimeoutError, match=r"more than 0\.5 s"), time_limit(0.5):
            time.sleep(30)
        assert rung == [True]


def test_it_needs_the_main_thread() -> None:
    errors = []

    def run() -> None:
        try:
            with time_limit(1):
                pass
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == ["timeout=1: needs the main thread of a Unix system; leave --gradmask-timeout out"]
