"""Progress on the terminal, if a person watches it: what an audit is doing, and how far a download is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradmask.printable import printable

if TYPE_CHECKING:
    from pytest_gradmask.auditing.events import AttackStarted

#: On the config: what attacks took in earlier audits of the run, in seconds an image.
_RATES = pytest.StashKey[dict[str, float]]()


@dataclass(slots=True)
class Clock:
    """Estimates the time left of an audit from how long each attack took before.

    There is no estimate if one of the attacks has not run before.

    Attributes:
        earlier: seconds an image that attacks took in other audits, by name. The models of those audits may have been
            faster or slower, so attacks that both have run set the scale.
        current: seconds an image that attacks took in this audit, by name.
    """

    earlier: dict[str, float]
    current: dict[str, float] = field(default_factory=dict)
    _running: tuple[AttackStarted, float] | None = None

    def begin(self, event: AttackStarted, now: float) -> float | None:
        """Start to time an attack.

        Args:
            event: the attack that is about to run.
            now: the time in seconds.

        Returns:
            Seconds until all attacks on these images have run, if each gets as many images; None if unknown.
        """
        self.end(now)
        self._running = event, now
        shared = self.current.keys() & self.earlier.keys()
        before = sum(self.earlier[name] for name in shared)
        scale = sum(self.current[name] for name in shared) / before if before else 1.0
        rates = {name: scale * rate for name, rate in self.earlier.items()} | self.current
        names = (event.attack, *event.later)
        return event.images * sum(rates[name] for name in names) if all(name in rates for name in names) else None

    def end(self, now: float) -> None:
        """Stop timing the attack that was running, if any."""
        if self._running is not None:
            event, started = self._running
            if event.images or event.attack not in self.current:
                self.current[event.attack] = (now - started) / max(event.images, 1)
            self._running = None


def describe(event: AttackStarted, seconds: float | None, total: int) -> str:
    """The attack in words, with what is left after it: ``bpda on 14 of 40 images, then 3 more, about 2 min left``.

    Args:
        event: the attack that is about to run.
        seconds: until all attacks on these images have run; None if unknown.
        total: images of the audit. If the audit has not attacked all of them yet, it may end after these images, or
            go on.
    """
    parts = [str(event)]
    if event.later:
        parts.append(f"then {len(event.later)} more")
    if seconds is not None:
        parts.append(f"{in_words(seconds)} {'left' if event.seen >= total else 'to the next interim analysis'}")
    return ", ".join(parts)


def in_words(seconds: float) -> str:
    """A time rounded to the precision of an estimate: ``a few seconds``, ``about 40 s``, ``about 3 min``."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


@contextmanager
def progress_line(config: pytest.Config, title: str, images: Sized) -> Iterator[Callable[[object], None]]:
    """Yield a function that shows an event, or any other object as text, on one line of the terminal.

    Each call replaces the text of the call before. Nothing is shown in logs (no terminal, or ``CI`` is set), under
    pytest-xdist and with ``-q``.

    Args:
        config: of the run.
        title: the start of the line.
        images: of the audit.
    """
    capture = _watched_capture(config)
    if capture is None:
        yield lambda event: None
        return
    from pytest_gradmask.auditing.events import AttackStarted

    writer = config.get_terminal_writer()
    rates = config.stash.setdefault(_RATES, {})
    clock = Clock(rates)

    def write(text: str) -> None:
        text = printable(text.replace("\n", " "))
        with capture.global_and_fixture_disabled():
            writer.write("\r" + text[-(writer.fullwidth - 1) :].ljust(writer.fullwidth - 1))
            writer.flush()

    def show(event: object) -> None:
        now = time.monotonic()
        if isinstance(event, AttackStarted):
            write(f"{title}: {describe(event, clock.begin(event, now), len(images))}")
        else:
            clock.end(now)
            write(f"{title}: {event}")

    try:
        yield show
    finally:
        clock.end(time.monotonic())
        rates.update(clock.current)
        write("")
        with capture.global_and_fixture_disabled():
            writer.write("\r")
            writer.flush()


@contextmanager
def uncaptured(config: pytest.Config, *, wanted: bool) -> Iterator[None]:
    """If wanted, and if a person watches, show what libraries print, such as how far a download is."""
    capture = _watched_capture(config) if wanted else None
    with nullcontext() if capture is None else capture.global_and_fixture_disabled():
        yield


def _watched_capture(config: pytest.Config) -> Any:
    """The object that captures the output of tests, if there is a terminal whose line can be replaced; else None."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    watched = reporter is not None and reporter.isatty and not os.environ.get("CI")
    return capture if watched and config.get_verbosity() >= 0 else None
