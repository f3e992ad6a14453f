"""Whole runs of pytest: in any order, with any number of workers, some of them killed, hanging, or ended by Ctrl-C.

No verdict and no figure changes.

Each test starts pytest in new processes, once by default and 50 times under the marker ``nightly``.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.project.test_faults import Record, own_environment, tries
from tests.report.report_toys import timeless_json

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for workers in /proc")

AUDITS = """
import os
import time
import pytest
from torch import nn
from tests.toys import IMAGES, TINY, KillGradient, linear, predictions

HANGS = [time.monotonic() + float(seconds) for seconds in os.environ.get("HANGS_AFTER", "").split()]

class Slow(nn.Sequential):
    def forward(self, images):
        if HANGS and time.monotonic() > HANGS[0]:
            HANGS.clear()  # once
            time.sleep(600)
        time.sleep(0.001)
        return super().forward(images)

@pytest.mark.gradmask(budget=TINY, eps=0.1, exhaustive=True)
@pytest.mark.parametrize("number", range(6))
def test_it(gradmask, number):
    model, masked = linear(seed=number), number % 2
    defense = Slow(KillGradient(), model) if masked else Slow(model)
    audit = gradmask.audit(defense.eval(), IMAGES, predictions(model, IMAGES))
    assert audit.verdict.name == ("MASKED" if masked else "NOT_MASKED")
"""

#: Runs pytest. A background process of a shell ignores Ctrl-C, and so would its children without this code.
START = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main())
"""
TESTS = 6
Audits = dict[str, Any]


class Project:
    """A folder with audits, and a cache and a report for each try."""

    def __init__(self, folder: Path, source: str = AUDITS) -> None:
        self.folder = folder
        (folder / "test_it.py").write_text(source)
        (folder / "pytest.ini").write_text("[pytest]\n")

    @contextmanager
    def running(self, name: str, *options: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """Pytest in a new process group, after its first line of output."""
        command = [
            sys.executable, "-uc", START, "--gradmask", "--gradmask-device=cpu",
            f"--gradmask-json={name}.json", f"--gradmask-cache={name}", *options,
        ]  # fmt: skip
        order = "" if any("randomly" in option for option in options) else "-p no:randomly"
        environment = own_environment(OMP_NUM_THREADS="1", PYTEST_ADDOPTS=order, **more)
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            lines = [""]
            while not re.search(r"collected \d|^\d+ workers? \[", lines[-1]):
                lines.append(process.stdout.readline())
                assert lines[-1], "".join(lines)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def report(self, name: str) -> dict[str, Any]:
        """The report of a run, with its audits by test and without their times."""
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        found["audits"] = {audit["test"]: {**timeless_json(audit), "cached": None} for audit in found["audits"]}
        return found

    def whole(self, name: str, *options: str, **more: str) -> Audits:
        """The audits of a run without a disturbance."""
        with self.running(name, *options, **more) as process:
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0, out
        found = self.report(name)
        assert found["complete"]
        audits: Audits = found["audits"]
        return audits


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The folder."""
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> Audits:
    """The audits of a run without a disturbance."""
    audits = project.whole("undisturbed")
    assert [audit["verdict"] for audit in audits.values()] == ["NOT_MASKED", "MASKED"] * (TESTS // 2)
    return audits


def agrees(found: dict[str, Any], expected: Audits) -> bool:
    """Check reported audits against an undisturbed run, and that the report names the others. Whether all are there."""
    audits = found["audits"]
    assert audits.items() <= expected.items()
    assert sorted([*audits, *found["not_run"]]) == sorted(expected)
    return len(audits) == len(expected)


def in_the_midst(process: subprocess.Popen[str], moments: random.Random) -> None:
    """Wait until one or two audits have ended, and a little longer. Two workers then still have audits to run."""
    assert process.stdout is not None
    ends = [time.monotonic()]
    for _ in range(moments.randint(1, 2)):
        while "PASSED" not in process.stdout.readline():
            assert process.poll() is None
        ends.append(time.monotonic())
    time.sleep(moments.uniform(0, 0.3) * (ends[-1] - ends[-2]))


@pytest.mark.longer
@tries
def test_the_order_of_tests_and_the_number_of_workers_change_nothing(
    tries: int, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_randomly")
    for number in range(tries):
        options = ("--gradmask-no-cache", f"--randomly-seed={number}", f"-n{(2, 0, 1, 3)[number % 4]}")
        assert project.whole(f"shuffled-{number}", *options) == undisturbed
    record_property("tries", tries)
    record_property("result", "shuffled, in one process or by up to three workers: the same verdicts and figures")


@pytest.mark.longer
@tries
def test_a_killed_worker_costs_its_own_audit(
    tries: int, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    pytest.importorskip("xdist")
    moments = random.Random(0)
    lost = 0
    for number in range(tries):
        name = f"killed-{number}"
        with project.running(name, "-v", "-n2") as process:
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            in_the_midst(process, moments)
            os.kill(int(moments.choice(workers)), signal.SIGKILL)
            process.communicate(timeout=300)
            assert process.returncode in (0, 1)
        found = project.report(name)
        everything = agrees(found, undisturbed)
        assert found["complete"] is everything
        assert (process.returncode == 0) is everything
        lost += not everything
        assert project.whole(name) == undisturbed
    record_property("tries", tries)
    record_property("result", f"{lost} lost the audit that ran; all others, and all after a second run, are the same")
    assert lost >= tries / 2


@pytest.mark.longer
@tries
def test_an_audit_that_hangs_costs_no_other(
    tries: int, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    raw = json.loads((project.folder / "undisturbed.json").read_text())
    seconds = [audit["seconds"] for audit in raw["audits"]]
    moments = random.Random(0)
    hung = 0
    for number in range(tries):
        name = f"hung-{number}"
        options = (f"--gradmask-timeout={3 + 3 * max(seconds)}",)  # more than any takes on a busy machine
        after = moments.uniform(0, 0.8) * sum(seconds) if number else 0  # once for certain
        with project.running(name, *options, HANGS_AFTER=str(after)) as process:
            process.communicate(timeout=300)
        found = project.report(name)
        others = {test: audit for test, audit in found["audits"].items() if audit["verdict"] != "INCONCLUSIVE"}
        assert others.items() <= undisturbed.items()
        assert found["audits"].keys() == undisturbed.keys()
        assert process.returncode == len(undisturbed) - len(others) <= 1
        hung += process.returncode
        assert project.whole(name) == undisturbed
    record_property("tries", tries)
    record_property("result", f"{hung} hung: `INCONCLUSIVE`; all others, and all after a second run, are the same")
    assert hung >= tries / 2


@pytest.mark.longer
@tries
def test_ctrl_c_leaves_a_partial_report(
    tries: int, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    moments = random.Random(0)
    reported = 0
    for number in range(tries):
        name = f"interrupted-{number}"
        with project.running(name, "-v") as process:
            in_the_midst(process, moments)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=300)
            assert process.returncode == pytest.ExitCode.INTERRUPTED
        found = project.report(name)
        assert not agrees(found, undisturbed)
        assert (found["complete"], found["exit_status"]) == (False, 2)
        reported += len(found["audits"])
        assert project.whole(name) == undisturbed
    record_property("tries", tries)
    record_property(
        "result", f"a report marked partial each time, {reported} audits in them, each the same; exit status 2"
    )
