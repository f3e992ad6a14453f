"""What runs beside audits: plugins that end, repeat or trace tests, and Ray's cluster, as its processes are killed.

Each test starts pytest in a new process, once under the marker ``slow`` and 20 times under ``nightly``. Whatever
happens, an audit is reported as in an undisturbed run, or as ``INCONCLUSIVE``, or its test is named as not run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.test_faults import Record
from tests.project.test_whole_runs import Audits, Project, in_the_midst

tries = pytest.mark.parametrize(
    "tries", [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.nightly)]
)

AUDITS = """
import os
import signal
import time
from pathlib import Path
import pytest
from torch import nn
from tests.toys import IMAGES, TINY, KillGradient, linear, predictions

CALLS = []
FAULT = Path(os.environ.get("FAULT", "no fault"))
PAUSE = float(os.environ.get("PAUSE", "0"))

def happens():
    # Once in all processes: in the one that can delete the file.
    what, after = FAULT.read_text().split()
    if len(CALLS) < int(after):
        return
    FAULT.unlink()
    if what == "hang":
        time.sleep(600)
    elif what == "raise":
        raise RuntimeError("flaky")
    else:
        os.kill(os.getpid(), getattr(signal, what))
        time.sleep(600)

class Slow(nn.Sequential):
    def forward(self, images):
        CALLS.append(1)
        try:
            happens()
        except FileNotFoundError:
            pass
        time.sleep(PAUSE)
        return super().forward(images)

@pytest.mark.gradmask(budget=TINY, eps=0.1, exhaustive=True)
@pytest.mark.parametrize("number", range(4))
def test_it(gradmask, number):
    model, masked = linear(seed=number), number % 2
    defense = Slow(KillGradient(), model) if masked else Slow(model)
    audit = gradmask.audit(defense.eval(), IMAGES, predictions(model, IMAGES))
    assert audit.verdict.name == ("MASKED" if masked else "NOT_MASKED")
"""
#: Not a multiple of the forwards that any of them needs, which is more.
_CALLS = 150


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with four audits."""
    return Project(tmp_path_factory.mktemp("companions"), AUDITS)


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> Audits:
    """The audits of a run without a disturbance."""
    return project.whole("undisturbed")


class Outcome:
    """A run with a fault: its exit status, its report, and its verdicts by test, in the order in which they ran."""

    def __init__(self, project: Project, name: str, fault: str, *options: str, after: int) -> None:
        file = project.folder / f"{name}.fault"
        file.write_text(f"{fault} {after}")
        with project.running(name, "--gradmask-no-cache", *options, FAULT=str(file)) as process:
            self.out, _ = process.communicate(timeout=500)
        self.status, self.happened = process.returncode, not file.exists()
        self.raw = json.loads((project.folder / f"{name}.json").read_text())
        self.verdicts: dict[str, list[str]] = {}
        for audit in self.raw["audits"]:
            self.verdicts.setdefault(audit["test"], []).append(audit["verdict"])

    def check(self, undisturbed: Audits) -> None:
        """No audit is lost without a word, and none has another verdict."""
        assert self.happened, self.out
        tests, reported = {*undisturbed}, {*self.verdicts}
        assert reported | {*self.raw["not_run"]} == tests, self.out
        assert not reported & {*self.raw["not_run"]}
        for test, verdicts in self.verdicts.items():
            assert {*verdicts} <= {undisturbed[test]["verdict"], "INCONCLUSIVE"}, self.out
        last = {test: verdicts[-1] for test, verdicts in self.verdicts.items()}
        right = last == {test: audit["verdict"] for test, audit in undisturbed.items()}
        assert (self.status == 0) is right, self.out
        assert reported == tests or not self.raw["complete"]


def longest(project: Project) -> float:
    """Seconds after which an audit surely hangs, also on a busy machine."""
    audits = json.loads((project.folder / "undisturbed.json").read_text())["audits"]
    return float(10 + 5 * max(audit["seconds"] for audit in audits))


@tries
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGTERM", "raise"])
def test_a_run_that_ends_at_the_first_failure(
    tries: int, fault: str, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    pytest.importorskip("xdist")
    moments, reported = random.Random(0), 0
    for number in range(tries):
        after = moments.randrange(1, _CALLS)
        found = Outcome(project, f"{fault}-{tries}-{number}", fault, "-n2", "--maxfail=1", after=after)
        found.check(undisturbed)
        # Searches and probes try again what raised, and the report says so.
        assert found.status != 0 or (fault == "raise" and "flaky" in json.dumps(found.raw))
        reported += len(found.verdicts)
    record_property("tries", tries)
    record_property(
        "result", f"{fault} with `-n2 --maxfail=1`: {reported} audits reported, the others named as not run"
    )


@tries
@pytest.mark.parametrize("workers", [0, 2])
def test_pytest_timeout_ends_an_audit_that_hangs(
    tries: int, workers: int, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    pytest.importorskip("pytest_timeout", reason="needs pytest-timeout: pip install 'pytest-gradmask[test]'")
    moments = random.Random(0)
    for number in range(tries):
        # Ours would end it later, and shares the one timer that a process has.
        options = (f"--timeout={longest(project):.0f}", "--gradmask-timeout=550", f"-n{workers}")
        after = moments.randrange(1, _CALLS)
        found = Outcome(project, f"timeout-{workers}-{tries}-{number}", "hang", *options, after=after)
        found.check(undisturbed)
        assert found.status == 1
        (hung,) = (audit for audit in found.raw["audits"] if audit["verdict"] == "INCONCLUSIVE")
        assert "from pytest-timeout" in hung["reasons"][0]
        assert hung["error"] is None
    record_property("tries", tries)
    record_property("result", f"the audit that hung is `INCONCLUSIVE`, the others are the same (`-n{workers}`)")


@tries
@pytest.mark.parametrize("fault", ["SIGKILL", "raise"])
def test_rerunfailures_repeats_an_audit(
    tries: int, fault: str, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    reason = "needs pytest-rerunfailures: pip install 'pytest-gradmask[test]'"
    pytest.importorskip("pytest_rerunfailures", reason=reason)
    moments = random.Random(0)
    for number in range(tries):
        after = moments.randrange(1, _CALLS)
        found = Outcome(project, f"again-{fault}-{tries}-{number}", fault, "-n2", "--reruns=1", after=after)
        found.check(undisturbed)
        assert found.status == 0
    record_property("tries", tries)
    record_property("result", f"{fault} with `--reruns=1`: the repeated audit ends as undisturbed")


@tries
def test_coverage_changes_nothing(tries: int, project: Project, undisturbed: Audits, record_property: Record) -> None:
    pytest.importorskip("pytest_cov")
    moments = random.Random(0)
    for number in range(tries):
        after = moments.randrange(1, _CALLS)
        found = Outcome(
            project, f"coverage-{tries}-{number}", "SIGTERM", "-n2", "--cov=tests", "--cov-report=", after=after
        )
        found.check(undisturbed)
    record_property("tries", tries)
    record_property("result", "SIGTERM to a worker under `--cov`: the others are the same")


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Processes below a process, each with its name."""
    children = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]  # of each thread
    for child in [child for of_thread in children for child in of_thread]:
        try:
            yield int(child), Path(f"/proc/{child}/comm").read_text().strip()
            yield from descendants(int(child))
        except FileNotFoundError:  # it has ended
            continue


def below(process: subprocess.Popen[str], title: str) -> list[int]:
    """Processes below one whose name contains a title. While processes start and end, the list misses some of them."""
    for _ in range(200):
        if found := [pid for pid, name in descendants(process.pid) if title in name]:
            return found
        assert process.poll() is None, f"it ended before a {title} was seen"
        time.sleep(0.05)
    raise AssertionError(f"no {title} below {process.pid}: {list(descendants(process.pid))}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@tries
@pytest.mark.parametrize("victim", ["worker", "head", "node"])
def test_a_killed_cluster_changes_no_verdict(
    tries: int, victim: str, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    """The head is the process that keeps the cluster's state, the node the one that starts workers."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'pytest-gradmask[ray]'")
    titles = {"worker": "ray::", "head": "gcs_server", "node": "raylet"}
    moments, ended, pause = random.Random(0), 0, "0.01"  # an audit then takes longer than a cluster does to start
    for number in range(tries):
        name = f"{victim}-{tries}-{number}"
        with project.running(name, "--gradmask-engine=ray", "-v", PAUSE=pause) as process:
            in_the_midst(process, moments)
            os.kill(moments.choice(below(process, titles[victim])), signal.SIGKILL)
            started = time.monotonic()
            process.communicate(timeout=300)
            assert time.monotonic() - started < 200
        if process.returncode == 0:
            assert project.report(name)["audits"] == undisturbed
        else:
            # Ray ends the process of pytest when its node is lost, which may die with its agents, or the head. Where
            # it goes on, an attack that was lost makes an audit inconclusive. What was finished is in the cache.
            ended += 1
            report = project.folder / f"{name}.json"
            audits = json.loads(report.read_text())["audits"] if report.exists() else []
            for audit in audits:
                assert audit["verdict"] in ("INCONCLUSIVE", undisturbed[audit["test"]]["verdict"])
        assert project.whole(name, PAUSE=pause) == undisturbed
    record_property("tries", tries)
    ends = f"{ended} runs ended with an exit status that is not 0, none with a wrong verdict; " if ended else ""
    record_property("result", f"{victim}: {ends}all verdicts, after a second run at the latest, are the same")
