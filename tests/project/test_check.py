"""The one command that runs every check."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.check import CHECKS, main


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run; mypy fails."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=3 if "mypy" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_it_stops_at_the_first_failure(ran: list[list[str]]) -> None:
    assert main() == 3
    assert ran == [[sys.executable, "-m", *check] for check in CHECKS[:3]]


@pytest.mark.parametrize(("paths", "status"), [(["tests/verdict"], 0), ([], 5)])
def test_named_files_need_no_longer_tests(paths: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=5 if "longer" in str(command) else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(paths) == status


def test_further_arguments_go_to_pytest(ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.check.CHECKS", (("ruff", "check"), ("pytest",)))
    assert main(["tests/verdict"]) == 0
    assert [command[2:] for command in ran] == [["ruff", "check"], ["pytest", "tests/verdict"]]
