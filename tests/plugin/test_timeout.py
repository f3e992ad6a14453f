"""``--gradmask-timeout``: a defense that hangs ends its audit, and no other."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from pytest_gradmask.errors import AuditTimeoutError, InputError
from pytest_gradmask.plugin.timeout import time_limit
from tests.plugin.test_reporting import DEFENSES, RUN, read

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


def spin() -> None:
    while True:
        pass


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(60), threading.Event().wait])
def test_what_hangs_ends(hang: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(AuditTimeoutError, match=r"more than 0.2 s .*run again with more time"), time_limit(0.2):
        hang()
    assert time.monotonic() - started < 30


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(60):
        pass
    with time_limit(None):
        pass
    with pytest.raises(ValueError, match="mine"), time_limit(60):
        raise ValueError("mine")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_timer_of_another_plugin_goes_on() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with time_limit(50):
            pass
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung


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
