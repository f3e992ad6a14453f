"""What the terminal says while a test runs, if somebody watches: what an audit is doing, how far a download is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_gradmask.auditing.events import Step

#: On the config: what attacks took in earlier audits of the run, in seconds an image.
_RATES = pytest.StashKey[dict[str, float]]()


@dataclass(slots=True)
class Clock:
    """Estimates how long an audit goes on, from how long each attack took before. No guess where one never ran.

    Attributes:
        earlier: seconds an image that attacks took in other audits, by name. Those were perhaps of larger models, so
            what this audit has in common with them sets the scale.
        own: the same in this audit.
    """

    earlier: dict[str, float]
    own: dict[str, float] = field(default_factory=dict)
    _running: tuple[Step, float] | None = None

    def begin(self, step: Step, now: float) -> float | None:
        """Seconds until all attacks on these images have run, if each gets as many; None if that cannot be told."""
        self.end(now)
        self._running = step, now
        shared = self.own.keys() & self.earlier.keys()
        before = sum(self.earlier[name] for name in shared)
        scale = sum(self.own[name] for name in shared) / before if before else 1.0
        rates = {name: scale * rate for name, rate in self.earlier.items()} | self.own
        names = (step.attack, *step.later)
        return step.images * sum(rates[name] for name in names) if all(name in rates for name in names) else None

    def end(self, now: float) -> None:
        """The attack that was running, if any, is over."""
        if self._running is not None:
            step, started = self._running
            if step.images or step.attack not in self.own:
                self.own[step.attack] = (now - started) / max(step.images, 1)
            self._running = None


def describe(step: Step, seconds: float | None, total: int) -> str:
    """A step in words, with what is left after it: ``bpda on 14 of 40 images, then 3 more, about 2 min left``.

    Args:
        step: which attack is about to run.
        seconds: until all attacks on these images have run; None if that cannot be told.
        total: images of the audit. Where it has not looked at all, it may end after these, or go on.
    """
    parts = [str(step)]
    if step.later:
        parts.append(f"then {len(step.later)} more")
    if seconds is not None:
        parts.append(f"{in_words(seconds)} {'left' if step.seen >= total else 'to the next look at the verdict'}")
    return ", ".join(parts)


def in_words(seconds: float) -> str:
    """No more exact than an estimate is: ``a few seconds``, ``about 40 s``, ``about 3 min``, ``about 1.5 h``."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


@contextmanager
def progress_line(config: pytest.Config, title: str, images: Sized) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows its argument after ``title``, in place.

    Silent in logs (no terminal, or ``CI`` set), under xdist and with ``-q``.

    Args:
        config: of the run.
        title: what comes first on the line.
        images: of the audit.
    """
    capture = _watched_capture(config)
    if capture is None:
        yield lambda message: None
        return
    from pytest_gradmask.auditing.events import Step

    writer = config.get_terminal_writer()
    rates = config.stash.setdefault(_RATES, {})
    clock = Clock(rates)

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            writer.write("\r" + text[-(writer.fullwidth - 1) :].ljust(writer.fullwidth - 1))
            writer.flush()

    def show(message: str) -> None:
        now = time.monotonic()
        if isinstance(message, Step):
            message = describe(message, clock.begin(message, now), len(images))
        else:
            clock.end(now)
        write(f"{title}: {message}")

    try:
        yield show
    finally:
        clock.end(time.monotonic())
        rates.update(clock.own)
        write("")
        with capture.global_and_fixture_disabled():
            writer.write("\r")
            writer.flush()


@contextmanager
def uncaptured(config: pytest.Config, *, wanted: bool) -> Iterator[None]:
    """Where wanted, and somebody watches, let what libraries print through: how far a download is."""
    capture = _watched_capture(config) if wanted else None
    with nullcontext() if capture is None else capture.global_and_fixture_disabled():
        yield


def _watched_capture(config: pytest.Config) -> Any:
    """What captures the output of tests, if there is a terminal on which a line may change."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    watched = reporter is not None and reporter.isatty and not os.environ.get("CI")
    return capture if watched and config.get_verbosity() >= 0 else None
