"""A Ray cluster whose processes are killed in mid-audit: no verdict changes, and the next run goes on.

Each test starts pytest in a new process, once under the marker ``slow`` and 20 times under ``nightly``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.test_companions import AUDITS, tries
from tests.project.test_faults import Record
from tests.project.test_whole_runs import Audits, Project, in_the_midst

pytest.importorskip("ray", reason="needs Ray: pip install 'pytest-gradmask[ray]'")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with four audits."""
    return Project(tmp_path_factory.mktemp("cluster"), AUDITS)


@pytest.fixture(scope="module")
def undisturbed(project: Project) -> Audits:
    """The audits of a run without a cluster."""
    return project.whole("undisturbed")


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Processes below a process, each with its name."""
    children = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]  # of each thread
    for child in [child for of_thread in children for child in of_thread]:
        try:
            yield int(child), Path(f"/proc/{child}/comm").read_text().strip()
            yield from descendants(int(child))
        except FileNotFoundError:  # it has ended
            continue


@tries
@pytest.mark.parametrize("victim", ["worker", "head", "node"])
def test_a_killed_cluster_changes_no_verdict(
    tries: int, victim: str, project: Project, undisturbed: Audits, record_property: Record
) -> None:
    """The head is the process that keeps the cluster's state, the node the one that starts workers."""
    titles = {"worker": "ray::", "head": "gcs_server", "node": "raylet"}
    moments, ended = random.Random(0), 0
    for number in range(tries):
        name = f"{victim}-{tries}-{number}"
        with project.running(name, "--gradmask-engine=ray", "-v") as process:
            in_the_midst(process, moments)
            found = [pid for pid, title in descendants(process.pid) if titles[victim] in title]
            assert found
            os.kill(moments.choice(found), signal.SIGKILL)
            started = time.monotonic()
            process.communicate(timeout=300)
            assert time.monotonic() - started < 200
        if process.returncode == 0:
            assert project.report(name)["audits"] == undisturbed
        else:  # Ray ends the process of pytest when its node is lost; what was finished is in the cache
            ended += 1
            assert victim == "node"
        assert project.whole(name) == undisturbed
    record_property("tries", tries)
    ends = f"{ended} runs were ended by Ray with an exit status that is not 0; " if ended else ""
    record_property("result", f"{victim}: {ends}all verdicts, after a second run at the latest, are the same")
