"""One line on the terminal that says what an audit is doing; nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def progress_line(config: pytest.Config, title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows its argument after ``title``, in place.

    Silent in logs (no terminal), under xdist and with ``-q``.
    """
    reporter = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    if reporter is None or capture is None or not reporter.isatty or config.get_verbosity() < 0:
        yield lambda message: None
        return
    writer = config.get_terminal_writer()

    def show(message: str) -> None:
        with capture.global_and_fixture_disabled():
            text = f"{title}: {message}"[-(writer.fullwidth - 1) :]
            writer.write("\r" + text.ljust(writer.fullwidth - 1))
            writer.flush()

    yield show
    with capture.global_and_fixture_disabled():
        writer.write("\r" + " " * (writer.fullwidth - 1) + "\r")
        writer.flush()
