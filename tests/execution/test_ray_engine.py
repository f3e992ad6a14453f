"""Attacks on a Ray cluster give the local result even if workers die, and the cluster is shut down afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Attack, Defense, ThreatModel, Verdict
from pytest_gradmask.errors import EngineError, InputError
from pytest_gradmask.execution.ray_engine import _arithmetic, _expected, _packed, connected, execute
from tests.plugin.test_reporting import TESTS
from tests.report.report_toys import timeless_json
from tests.toys import IMAGES, KillGradient, Noisy, audited, linear, masked, predictions, timeless

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'pytest-gradmask[ray]'")

pytestmark = pytest.mark.enable_socket

LABELS = predictions(linear(), IMAGES)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine with two workers, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        before, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
        ray.init(
            "local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 * 2**20,
            log_to_driver=False, configure_logging=False,
        )  # fmt: skip
        # Tests that run pytest inside pytest have another home directory.
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(Path.home() / ".ray" / "auth_token"))
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)
        sys.excepthook = hook


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.auditing.scoring.chunk_size", lambda *_: 10)


DEFENSES: dict[str, Callable[[], nn.Module]] = {
    "masked": lambda: masked(KillGradient),
    "randomized": lambda: Noisy(linear(), 0.05).eval(),
}


@pytest.mark.longer
@pytest.mark.usefixtures("cluster", "small_chunks")
@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES)
def test_the_audit_is_the_local_one(make: Callable[[], nn.Module]) -> None:
    here, there = (audited(make(), labels=LABELS, engine=engine) for engine in ("local", "ray"))
    assert timeless(there) == timeless(here)
    assert ray.is_initialized()  # it was connected before


class Fatal:
    """An attack that kills its process on the first call. Each call adds a line to its file."""

    def __init__(self, file: Path, *, always: bool = False) -> None:
        self.file, self.always = file, always

    def __call__(self, model: nn.Module, images: Tensor, *_: Any, **__: Any) -> Tensor:
        with self.file.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.always or len(self.file.read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        model(images)
        return 1 - images

    @property
    def workers(self) -> list[int]:
        return [int(line) for line in self.file.read_text().splitlines()]


def survivor(file: Path, **arguments: Any) -> Defense:
    attack = Attack(Fatal(file, **arguments), "fatal")
    return Defense(masked(KillGradient), attacks=[attack])


@pytest.mark.longer
@pytest.mark.usefixtures("cluster", "small_chunks")
def test_dead_worker_changes_no_result(tmp_path: Path) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.write_text("0\n")  # here, nothing may die
    wide: dict[str, Any] = {"threat": ThreatModel(1.0), "exhaustive": True}
    here = audited(survivor(local), **wide)
    there = audited(survivor(remote), engine="ray", **wide)
    workers = Fatal(remote).workers
    assert len(workers) == len(Fatal(local).workers)
    assert os.getpid() not in workers
    assert workers[0] not in workers[1:]
    assert timeless(there) == timeless(here)
    assert there.attack("fatal").status == "done"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_worker_that_always_dies_fails_the_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.execution.ray_engine.RETRIES", 1)
    audit = audited(survivor(tmp_path / "deaths", always=True), engine="ray")
    failed = audit.attack("fatal")
    assert failed.status == "failed"
    assert failed.note.startswith("WorkerCrashedError after 1 retries: ")
    assert len(Fatal(tmp_path / "deaths").workers) == 2
    assert audit.verdict is not Verdict.NOT_MASKED


@pytest.mark.longer
@pytest.mark.usefixtures("cluster")
def test_exception_of_an_attack_is_not_retried(tmp_path: Path) -> None:
    def raises(*_: Any, **__: Any) -> Tensor:
        with (tmp_path / "calls").open("a") as file:
            file.write("called\n")
        raise ValueError("no such luck")

    audit = audited(Defense(linear(), attacks=[raises]), engine="ray", threat=ThreatModel(1e-4))
    assert (audit.attack("raises").status, audit.attack("raises").note) == ("failed", "ValueError: no such luck")
    assert (tmp_path / "calls").read_text().splitlines() == ["called"]


@pytest.mark.usefixtures("cluster")
def test_gpu_work_needs_a_gpu_in_the_cluster() -> None:
    with pytest.raises(EngineError, match="has no GPU"), connected("auto", "cuda"):
        raise AssertionError
    with pytest.raises(InputError, match="device='cuda:1'"), connected("auto", "cuda:1"):
        raise AssertionError


def test_a_process_is_connected_to_one_cluster_only(cluster: str) -> None:
    with connected(cluster, "cpu"):
        pass
    with pytest.raises(EngineError, match="is connected to the Ray cluster"), connected("10.0.0.1:6379", "cpu"):
        raise AssertionError
    assert ray.is_initialized()


@pytest.mark.longer
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("deaf", [False, True], ids=["interrupted", "that misses the interrupt"])
def test_closing_ends_running_chunks(tmp_path: Path, deaf: bool) -> None:
    def slow(name: str) -> None:
        (tmp_path / f"{name} begun").touch()
        for _ in range(3000):  # long, so that it cannot end by itself on a busy machine
            try:
                time.sleep(0.1)
            except KeyboardInterrupt:
                if not deaf:
                    raise
        (tmp_path / f"{name} done").touch()

    with connected("auto", "cpu") as engine:
        run = engine.start(slow, [(name,) for name in "abcde"])
        while not list(tmp_path.glob("* begun")):
            time.sleep(0.1)
        run.close()
        started = time.monotonic()
        while ray.available_resources().get("CPU") != 2:
            assert time.monotonic() < started + 60
            time.sleep(0.1)
    assert not list(tmp_path.glob("* done"))


# pickling


class Unsendable(nn.Module):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle it")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("cluster")
def test_unpicklable_defense_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"cannot be sent to a Ray cluster .*cannot pickle it.*engine='local'"):
        audited(Unsendable().eval(), engine="ray")


def unloadable() -> None:
    raise ModuleNotFoundError("No module named 'my_project'")


class Absent:
    """Can be pickled but not loaded, as if its module were missing on the worker."""

    def __reduce__(self) -> Any:
        return unloadable, ()


class Homeless(nn.Module):
    """A defense with a part that only this process can load."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.part = linear(), Absent()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)  # type: ignore[no-any-return]


@pytest.mark.longer
@pytest.mark.usefixtures("cluster")
def test_defense_unloadable_on_a_worker_ends_the_audit() -> None:
    with pytest.raises(EngineError, match=r"a Ray worker cannot load the defense .*No module named 'my_project'"):
        audited(Homeless().eval(), engine="ray")
    assert ray.is_initialized()


def add(first: int, second: int) -> int:
    return first + second


def test_worker_refuses_other_versions() -> None:
    chunk, torch_version = _packed((1, 2)), _expected()["torch"]
    assert execute(_expected(), _arithmetic(), _packed(add), chunk) == ("done", 3)
    other = {**_expected(), "torch": "0.1", "autoattack": "0.2"}
    assert execute(other, _arithmetic(), _packed(add), chunk) == (
        "refused",
        f"has autoattack None, not 0.2; torch {torch_version}, not 0.1: results would differ",
    )
    status, why = execute(_expected(), _arithmetic(), _packed(Absent()), chunk)
    assert status == "refused"
    assert "No module named 'my_project'" in why


def test_arithmetic_settings_are_sent() -> None:
    before = _arithmetic()
    assert execute(_expected(), before, _packed(torch.get_num_threads), _packed(())) == ("done", before[0])
    try:
        there = (before[0] + 1, torch.float64, *before[2:])
        assert execute(_expected(), there, _packed(_arithmetic), _packed(())) == ("done", there)
    finally:
        execute(_expected(), before, _packed(add), _packed((0, 0)))
    assert _arithmetic() == before


def test_shared_memory_stays_shared() -> None:
    storage = torch.zeros(4)

    def shared(first: Tensor, second: Tensor) -> bool:
        first += 1  # it is not read-only either
        return bool((second == 1).all())

    assert execute(_expected(), _arithmetic(), _packed(shared), _packed((storage, storage[1:]))) == ("done", True)
    assert not storage.any()


# connecting


def test_other_program_at_the_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("pytest_gradmask.execution.ray_engine._HEALTH_CHECK_TIMEOUT", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"what answers at {address} is not a Ray cluster"):
            audited(linear(), engine=f"ray:{address}")


ALONE = """
import faulthandler, json, os, signal, sys
from pathlib import Path
from tests.toys import KillGradient, audited, masked

def state():
    return (
        dict(os.environ), str(signal.getsignal(signal.SIGTERM)), str(sys.excepthook), faulthandler.is_enabled(),
        sorted(path.name for path in Path("/tmp").glob("gradmask-*")),
    )

before = state()
audit = audited(masked(KillGradient), engine="ray")
assert state() == before, (state(), before)
import ray
assert not ray.is_initialized()
print(audit.verdict.name)
"""


def children(pid: int) -> list[str]:
    """Command lines of the processes in the session of this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3]) == pid:
                found.append((folder / "cmdline").read_text())
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads processes from /proc")
def test_local_cluster_leaves_nothing_behind() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.Popen(
        [sys.executable, "-c", ALONE], stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    assert done.communicate(timeout=300)[0].strip() == "MASKED"
    assert done.returncode == 0
    assert not children(done.pid)


@pytest.mark.slow
def test_pytest_on_a_cluster_writes_the_same_json(cluster: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    found = []
    for name, engine in (("here", "local"), ("there", f"ray:{cluster}")):
        result = pytester.runpytest_subprocess(
            "--gradmask", "--gradmask-device=cpu", "--gradmask-no-cache", f"--gradmask-engine={engine}",
            f"--gradmask-json={name}.json",
        )  # fmt: skip
        result.assert_outcomes(passed=2)
        audits = json.loads((pytester.path / f"{name}.json").read_text())["audits"]
        found.append([timeless_json(audit) for audit in audits])
    assert found[0] == found[1]
    result.stdout.fnmatch_lines([f"gradmask: *, engine=ray:{cluster}"])
