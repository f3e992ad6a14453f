"""The line that shows what an audit is doing: it never erases pytest's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_gradmask.auditing.events import AttackStarted, Step
from pytest_gradmask.plugin.estimate import Clock
from pytest_gradmask.plugin.progress import Line
from tests.plugin.terminal import Screen, watch

#: Audits that only send events, and take long enough to be seen.
CONFTEST = """
import time
import pytest
from pytest_gradmask.auditing.events import AttackStarted, Message, Step

def audit(defense, images, labels, *, progress, **_):
    progress(Message("preflight"))
    time.sleep(0.4)
    step = Step(attack="transfer-backbone", kind="adaptive", cost=60)
    progress(AttackStarted(step=step, images=3, seen=4))
    time.sleep(0.4)
    raise RuntimeError("that is all")

@pytest.fixture(autouse=True)
def no_attacks(monkeypatch):
    monkeypatch.setattr("pytest_gradmask.auditing.run.audit", audit)
"""

TEST = """
import torch

class ADefenseWithALongName(torch.nn.Identity):
    pass

def test_before():
    pass

def test_it(gradmask):
    try:
        gradmask.audit(ADefenseWithALongName(), torch.zeros(400, 1, 1, 1), torch.zeros(400))
    except RuntimeError:
        pass

def test_other(gradmask):
    gradmask.audit(ADefenseWithALongName(), torch.zeros(400, 1, 1, 1), torch.zeros(400))
"""


def shown(folder: Path, *options: str, columns: int = 80, environment: Mapping[str, str] | None = None) -> Screen:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_first.py").write_text("def test_first(): pass")
    (folder / "test_it.py").write_text(TEST)
    command = ("pytest", "--gradmask", "--gradmask-device=cpu", "--tb=no", "-p", "no:randomly", *options)
    return watch(command, columns, folder, environment or {})


def event(attack: str, images: int, seen: int) -> AttackStarted:
    return AttackStarted(step=Step(attack=attack, kind="adaptive", cost=60), images=images, seen=seen)


@pytest.mark.longer
@pytest.mark.parametrize(("columns", "options"), [(80, ()), (120, ()), (80, ("-v",))])
def test_lines_of_pytest_are_those_of_a_run_that_nobody_watches(
    tmp_path: Path, columns: int, options: tuple[str, ...]
) -> None:
    watched = shown(tmp_path, *options, columns=columns)
    alone = shown(tmp_path, *options, columns=columns, environment={"CI": "1"})
    assert any("transfer-backbone" in row for row in watched.seen)
    assert not any("transfer-backbone" in row for row in alone.seen)

    def progress_of_pytest(screen: Screen) -> list[str]:
        start = next(number for number, row in enumerate(screen.rows) if row.startswith("collected"))
        end = next(number for number, row in enumerate(screen.rows) if "masking audits" in row)
        return screen.rows[start:end]

    assert progress_of_pytest(watched) == progress_of_pytest(alone)
    if not options:
        assert [row.split("  ")[0] for row in progress_of_pytest(watched)[2:4]] == ["test_first.py .", "test_it.py ..F"]


@pytest.mark.longer
def test_the_line_says_which_test_and_what_runs(tmp_path: Path) -> None:
    seen = shown(tmp_path).seen
    attacks = [row for row in seen if "transfer-backbone" in row]
    assert any(row.startswith("1/2 ADef") for row in attacks)
    assert any(row.startswith("2/2 ADef") for row in attacks)
    assert all("transfer-backbone on 3 images (4 of 400), 0:00" in row for row in attacks)
    assert any(row.startswith("1/2 ADefenseWithALongName: preflight, 0:00") for row in seen)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("options", "environment"),
    [
        pytest.param((), {"CI": "true"}, id="CI"),
        pytest.param((), {"TERM": "dumb"}, id="dumb terminal"),
        pytest.param(("-q",), {}, id="quiet"),
        pytest.param(("-s",), {}, id="output of tests is shown"),
        pytest.param(("-n1",), {}, id="xdist"),
    ],
)
def test_nothing_is_shown_if_nobody_watches(
    tmp_path: Path, options: tuple[str, ...], environment: dict[str, str]
) -> None:
    if "-n1" in options:
        pytest.importorskip("xdist")
    assert not any("transfer-backbone" in row for row in shown(tmp_path, *options, environment=environment).seen)


@pytest.mark.longer
def test_nothing_is_shown_without_a_terminal(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest_subprocess("--gradmask", "--gradmask-device=cpu", "--tb=no")
    assert "transfer-backbone" not in result.stdout.str()


def test_the_name_of_the_attack_stays_in_a_narrow_terminal() -> None:
    line = Line(title="12/34 a-defense-with-a-very-long-name", total=1000, clock=Clock(), started=0)
    line.show(event("transfer-backbone", 125, 200), 0)
    text = line.text(79, 3605)
    assert len(text) <= 79
    assert text.startswith("12/34 a")
    assert text.endswith("\N{HORIZONTAL ELLIPSIS}: transfer-backbone on 125 images (200 of 1000), 60:05")
    assert len(line.text(30, 0)) == 30


@pytest.mark.longer
def test_an_interrupted_run_says_how_to_go_on(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(gradmask): raise KeyboardInterrupt")
    kept = pytester.runpytest_subprocess("--gradmask", "--gradmask-device=cpu")
    kept.stdout.fnmatch_lines(["Interrupted: finished attacks are kept. Run the same command to go on."])
    lost = pytester.runpytest_subprocess("--gradmask", "--gradmask-device=cpu", "--gradmask-no-cache")
    lost.stdout.no_fnmatch_line("Interrupted: finished*")


def test_only_a_person_interrupts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_a="def test_it(gradmask): pass", test_b="1 / 0")
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu")
    result.stdout.fnmatch_lines(["*1 error during collection*"])
    result.stdout.no_fnmatch_line("Interrupted: finished*")


@pytest.mark.longer
def test_the_report_is_announced(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert any(
        row.startswith("report: drawing 2 audits") for row in shown(tmp_path, "--gradmask-html=report.html").seen
    )
