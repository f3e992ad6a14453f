"""Progress on the terminal, if a person watches it: what an audit is doing, and how far a download is."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradmask.auditing.events import AttackEnded, AttackStarted, Message
from pytest_gradmask.plugin.estimate import AUDIT, FORWARD, Clock, in_words
from pytest_gradmask.printable import printable

if TYPE_CHECKING:
    from rich.text import Text

#: On the config: by defense, what the steps of its last audit took. Under an empty name, that of any.
_SPEEDS = pytest.StashKey[dict[str, dict[str, float]]]()
#: In pytest's cache: the same of earlier runs.
_CACHED = "gradmask/speeds"
_LEAST_TITLE = 12  # characters of a title that is cut


@dataclass(slots=True, kw_only=True)
class Line:
    """The text of the line, which is made anew each time that it is drawn.

    Attributes:
        title: what runs: the start of the line. It is cut where the line is too long.
        total: images of the audit.
        clock: times the steps.
        started: when, in seconds of a monotonic clock.
        event: the last one.
    """

    title: str
    total: int
    clock: Clock
    started: float
    event: object = "starting"

    def show(self, event: object, now: float) -> None:
        """Take an event."""
        if isinstance(event, AttackEnded):
            self.clock.attack_ended(event, now)
            return
        if isinstance(event, AttackStarted | Message):
            self.clock.begin(event, now)
        else:
            self.clock.end(now)
        self.event = event

    def text(self, width: int, now: float) -> str:
        """The line: ``2/5 jpegish: bpda on 14 images (40 of 200), 1:10, analysis in ~2 min``."""
        minutes, seconds = divmod(int(now - self.started), 60)
        event, parts = self.event, [str(self.event), f"{minutes}:{seconds:02}"]
        if isinstance(event, AttackStarted):
            plural = "" if event.images == 1 else "s"
            parts[0] = f"{event.attack} on {event.images} image{plural} ({event.seen} of {self.total})"
        left = self.clock.left(now)
        if left is not None:
            # If not all images have been attacked, the audit may end after these, or go on.
            goes_on = isinstance(event, AttackStarted) and event.seen < self.total
            parts.append(f"{'analysis' if goes_on else 'end'} in {in_words(left)}")
        rest = ", ".join(parts)
        room = max(_LEAST_TITLE, width - len(rest) - len(": "))
        title = self.title if len(self.title) <= room else self.title[: room - 1] + "\N{HORIZONTAL ELLIPSIS}"
        return printable(f"{title}: {rest}".replace("\n", " "))[:width]


@contextmanager
def progress_line(
    config: pytest.Config, title: str, total: int, *, defense: str = "", margin: float = 0.25, confidence: float = 0.99
) -> Iterator[Callable[[object], None]]:
    """Yield a function that shows an event, or any other object as text, on a line of its own below pytest's.

    Each call replaces the text of the call before, and nothing is left at the end. Nothing is shown in logs (no
    terminal, or ``CI`` is set), under pytest-xdist, with ``-q``, and with ``-s``, as what tests print would be erased.

    Args:
        config: of the run.
        title: the start of the line.
        total: images of the audit.
        defense: name of what is audited; empty if nothing is.
        margin, confidence: of the verdict.
    """
    capture = _watched_capture(config)
    if capture is None or config.option.capture == "no":
        yield lambda event: None
        return
    now = time.monotonic
    known = _speeds(config)
    clock = Clock(total=total, margin=margin, confidence=confidence, earlier=known.get(defense) or known.get("", {}))
    line = Line(title=title, total=total, clock=clock, started=now())

    try:
        with _below(config, capture, lambda width: line.text(width, now())) as redraw:

            def show(event: object) -> None:
                line.show(event, now())
                redraw()

            yield show
    finally:
        line.clock.close(now())
        _keep(config, defense, line.clock.current)


@contextmanager
def _below(config: pytest.Config, capture: Any, text: Callable[[int], str]) -> Iterator[Callable[[], None]]:
    """Show a line below the one that pytest is writing, which stays as it is, until the end of the context.

    It is drawn four times a second, and by the function that this yields.
    """
    from rich.console import Console
    from rich.control import Control
    from rich.live import Live
    from rich.text import Text

    writer = config.get_terminal_writer()
    with capture.global_and_fixture_disabled():
        writer.flush()
        # The thread that draws the line writes while the output of tests is captured.
        stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with closing(stream):
        size = os.get_terminal_size(stream.fileno())
        columns = size.columns or shutil.get_terminal_size().columns
        console = Console(file=stream, width=columns, height=size.lines or None, legacy_windows=False)
        if console.is_dumb_terminal:
            yield lambda: None
            return

        def line() -> Text:
            return Text(text(columns - 1), no_wrap=True, overflow="crop")

        written = writer.width_of_current_line
        if written:
            console.line()
        try:
            with Live(
                get_renderable=line, console=console, refresh_per_second=4, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            ) as live:  # fmt: skip
                yield live.refresh
        finally:
            if written % columns:  # otherwise pytest goes on in the next line anyway
                console.control(Control.move_to_column(written % columns, -1))


def _speeds(config: pytest.Config) -> dict[str, dict[str, float]]:
    """What the steps of earlier audits took, of this run or of earlier ones."""
    if _SPEEDS not in config.stash:
        cache = getattr(config, "cache", None)
        config.stash[_SPEEDS] = {} if cache is None else dict(cache.get(_CACHED, {}))
    return config.stash[_SPEEDS]


def _keep(config: pytest.Config, defense: str, speeds: Mapping[str, float]) -> None:
    """Keep what the steps of an audit took. For other defenses, the speed of a forward and of the whole is kept."""
    if not defense or FORWARD not in speeds:
        return
    known = _speeds(config)
    known[defense] = {**known.get(defense, {}), **speeds}
    known[""] = {**known.get("", {}), **{name: speeds[name] for name in (FORWARD, AUDIT) if name in speeds}}
    if getattr(config, "cache", None) is not None:
        config.cache.set(_CACHED, known)


@contextmanager
def uncaptured(config: pytest.Config, *, wanted: bool) -> Iterator[None]:
    """If wanted, and if a person watches, show what libraries print, such as how far a download is."""
    capture = _watched_capture(config) if wanted else None
    if capture is not None:
        with capture.global_and_fixture_disabled():
            # Libraries return to the start of the line: pytest's must not be there.
            config.pluginmanager.getplugin("terminalreporter").ensure_newline()
    with nullcontext() if capture is None else capture.global_and_fixture_disabled():
        yield


def _watched_capture(config: pytest.Config) -> Any:
    """The object that captures the output of tests, if there is a terminal whose line can be replaced; else None."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    watched = reporter is not None and reporter.isatty and not os.environ.get("CI")
    return capture if watched and config.get_verbosity() >= 0 else None
