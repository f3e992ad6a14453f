"""A terminal for tests: runs a command in a pseudo-terminal, and keeps what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: A control sequence (its numbers and its letter), the title or progress of a window, or one character.
_TOKEN = re.compile(r"\x1b\[[?]?([\d;]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|(.)", re.DOTALL)


class Screen:
    """As many rows as are written, and a cursor. It knows the control sequences that pytest and rich use.

    Attributes:
        seen: every row that was ever shown when a chunk of output ended.
    """

    def __init__(self, columns: int) -> None:
        self._columns, self._row, self._column = columns, 0, 0
        self._rows: list[list[str]] = [[]]
        self.seen: set[str] = set()

    @property
    def rows(self) -> list[str]:
        """The rows, without the spaces at their ends."""
        return ["".join(row).rstrip() for row in self._rows]

    def write(self, text: str) -> None:
        """Show text."""
        for match in _TOKEN.finditer(text):
            numbers, letter, character = match.groups()
            if letter:
                self._control(letter, int(numbers or 0) if numbers.isdigit() or not numbers else 0)
            elif character:
                self._put(character)
        self.seen.update(self.rows)

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._go_to(self._row + 1)
        else:
            if self._column == self._columns:  # the last character filled the row
                self._go_to(self._row + 1)
                self._column = 0
            row = self._rows[self._row]
            row += " " * (self._column + 1 - len(row))
            row[self._column] = character
            self._column += 1

    def _control(self, letter: str, number: int) -> None:
        row = self._rows[self._row]
        match letter:
            case "A":
                self._go_to(max(0, self._row - max(number, 1)))
            case "G":
                self._column = max(number, 1) - 1
            case "K" if number == 2:
                row.clear()
            case "K" if number == 0:
                del row[self._column :]
            case "m" | "h" | "l":  # colours, and whether the cursor is visible
                pass
            case _:
                raise NotImplementedError(f"control sequence {number}{letter}")

    def _go_to(self, row: int) -> None:
        self._rows += [[] for _ in range(row + 1 - len(self._rows))]
        self._row = row


def watch(command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str]) -> Screen:
    """Run ``python -m`` with this command in a folder, in a terminal so wide. Returns what it shows at its end."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        variables = _variables() | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | dict(environment)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execve(sys.executable, [sys.executable, "-m", *command], variables)
    screen = Screen(columns)
    try:
        while data := os.read(terminal, 1 << 16):
            screen.write(data.decode(errors="replace"))
    except OSError:  # the command has ended
        pass
    finally:
        os.close(terminal)
        os.waitpid(process, 0)
    return screen


def _variables() -> dict[str, str]:
    hidden = {"CI", "BUILD_NUMBER", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTEST_ADDOPTS"}
    return {name: value for name, value in os.environ.items() if name not in hidden}
