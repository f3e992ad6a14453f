"""The progress bar of the command that trains."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from pytest_gradmask.training import __main__ as command
from pytest_gradmask.training.__main__ import training_progress
from pytest_gradmask.training.loop import Progress
from tests.training.training_toys import arguments

SHOW_CURSOR = "\x1b[?25h"
ERASE_LINE = "\x1b[2K"


class Terminal(io.StringIO):
    """A terminal that records its output."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that does not decide whether the stream is a terminal."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_nothing_is_drawn_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("tiny") as report:
        report(Progress(1, 2, 0.5, 0.25))
        report(Progress(2, 2, 0.4, 0.5))
    assert capsys.readouterr() == ("", "")


def test_bar_shows_step_loss_and_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stderr(Terminal()) as screen, training_progress("tiny") as report:
        report(Progress(3, 12, 1.23456, 0.5))
    shown = screen.getvalue()
    assert "tiny" in shown
    assert "3/12 loss 1.235 accuracy 0.500" in shown
    assert capsys.readouterr() == ("", "")


def test_bar_is_gone_at_the_end() -> None:
    with redirect_stderr(Terminal()) as screen, training_progress("tiny") as report:
        report(Progress(12, 12, 1.0, 0.5))
    shown = screen.getvalue()
    after = shown[shown.rindex("12/12") :]
    assert SHOW_CURSOR in after
    assert ERASE_LINE in after


def draw_and_stop() -> None:
    with training_progress("tiny") as report:
        report(Progress(4, 12, 1.0, 0.5))
        raise KeyboardInterrupt


def test_bar_is_gone_after_an_interruption_too() -> None:
    with redirect_stderr(Terminal()) as screen, pytest.raises(KeyboardInterrupt):
        draw_and_stop()
    shown = screen.getvalue()
    after = shown[shown.rindex("4/12") :]
    assert SHOW_CURSOR in after
    assert ERASE_LINE in after


def test_command_draws_a_bar_for_every_recipe(workshop: Path) -> None:
    with redirect_stderr(Terminal()) as screen:
        assert command.main(arguments(workshop, "tiny.toml", "guarded.toml")) == 0
    shown = screen.getvalue()
    first, second = shown.index("12/12 loss"), shown.rindex("12/12 loss")
    assert shown.index("tiny") < first < shown.index("guarded") < second
