"""Every engine gives the same audit, even if chunks share no state and run in another order."""

from __future__ import annotations

import copy
import importlib.util
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Attack, Defense, ThreatModel, Verdict
from pytest_gradmask.errors import DependencyError, EngineError, InputError, LostWorkerError
from pytest_gradmask.execution.engine import LOCAL, check_engine, opened, ray_address
from pytest_gradmask.loading.models.composites import RandomizedEnsemble
from tests.plugin.test_options import AUDIT_TEST
from tests.toys import IMAGES, Counting, KillGradient, Noisy, audited, linear, masked, predictions, timeless

LABELS = predictions(linear(), IMAGES)


class Elsewhere:
    """Runs all chunks at once, from the last to the first, each on a copy of the work."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.chunks: list[int] = []
        self.closed = 0

    def start(self, work: Any, chunks: Iterable[tuple[Any, ...]]) -> Finished:
        self.started.append(work.attack.name)
        chunks = list(chunks)
        self.chunks.append(len(chunks))
        results = [copy.deepcopy(work)(*copy.deepcopy(chunk)) for chunk in reversed(chunks)]
        return Finished(self, results[::-1])


class Finished:
    """Results that are already computed."""

    def __init__(self, engine: Elsewhere, results: list[Any]) -> None:
        self.engine, self.results = engine, results

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def close(self) -> None:
        self.engine.closed += 1


def ensemble() -> Defense:
    members = [masked(KillGradient, linear(seed=seed)) for seed in (0, 1)]
    return Defense(RandomizedEnsemble(members).eval(), members=members)


def sloppy(model: nn.Module, images: Tensor, *_: Any, threat: ThreatModel, **__: Any) -> Tensor:
    """An attack that draws from the global generator, which it should not."""
    perturbed = threat.project(images + threat.eps * (2 * torch.rand_like(images) - 1), images)
    model(perturbed)
    return perturbed


DEFENSES: dict[str, Callable[[], nn.Module | Defense]] = {
    "masked": lambda: masked(KillGradient),
    "randomized": lambda: Noisy(linear(), 0.05).eval(),
    "ensemble": ensemble,
    "with a user's attack": lambda: Defense(linear(), attacks=[sloppy]),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.auditing.scoring.chunk_size", lambda *_: 10)


@pytest.mark.longer
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES)
def test_the_audit_is_the_same_wherever_attacks_run(make: Callable[[], nn.Module | Defense]) -> None:
    engine = Elsewhere()
    here, there = (audited(make(), labels=LABELS, engine=some) for some in (LOCAL, engine))
    assert timeless(there) == timeless(here)
    assert all(attack.status != "failed" for attack in here.attacks)
    assert max(engine.chunks) > 1


@pytest.mark.usefixtures("small_chunks")
def test_exhaustive_audit_is_the_same_wherever_attacks_run() -> None:
    here, there = (audited(masked(KillGradient), exhaustive=True, engine=some) for some in (LOCAL, Elsewhere()))
    assert timeless(there) == timeless(here)


def test_adaptive_attacks_are_cancelled() -> None:
    """Adaptive attacks are cancelled once the verdict is certain."""
    engine = Elsewhere()
    audit = audited(masked(KillGradient), engine=engine)
    assert audit.verdict is Verdict.MASKED
    skipped_early = {attack.name for attack in audit.attacks if attack.status == "skipped-early"}
    assert skipped_early >= {"transfer-backbone", "square", "zero-order"}
    assert "transfer-backbone" in engine.started  # beside BPDA
    assert "square" not in engine.started  # it gets what those leave
    assert engine.closed == len(engine.started)


def test_local_engine_runs_chunks_lazily() -> None:
    ran: list[int] = []
    run = LOCAL.start(ran.append, [(1,), (2,)])
    assert not ran
    next(iter(run))
    run.close()
    assert ran == [1]


@pytest.mark.usefixtures("small_chunks")
def test_error_on_one_chunk_fails_the_attack() -> None:
    def picky(model: nn.Module, images: Tensor, *_: Any, **__: Any) -> Tensor:
        model(images)
        if len(images) < 10:
            raise RuntimeError("too few")
        return images

    defense = Defense(linear(), attacks=[Attack(picky, kind="gradient")])
    for engine in (LOCAL, Elsewhere()):
        result = audited(defense, IMAGES[:12], threat=ThreatModel(1e-4), engine=engine).attack("picky")
        assert (result.status, result.note, result.broken) == ("failed", "RuntimeError: too few", ())


class Deadly(Elsewhere):
    """Loses the workers that run BPDA."""

    def start(self, work: Any, chunks: Iterable[tuple[Any, ...]]) -> Finished:
        return Lost(self, []) if work.attack.name == "bpda" else super().start(work, chunks)


class Lost(Finished):
    def __iter__(self) -> Iterator[Any]:
        raise LostWorkerError("WorkerCrashedError after 3 retries")


def test_lost_worker_fails_the_attack() -> None:
    audit = audited(masked(KillGradient), engine=Deadly(), exhaustive=True)
    assert audit.attack("bpda").status == "failed"
    assert audit.attack("bpda").note == "WorkerCrashedError after 3 retries"
    assert audit.attack("square").status == "done"


def test_stateful_defense_is_warned_of_where_copied() -> None:
    with pytest.warns(UserWarning, match="Counting changes as it runs"):
        audited(Counting(linear()).eval(), engine=Elsewhere())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audited(Counting(linear()).eval())
        audited(Noisy(linear(), 0.05).eval(), labels=LABELS, engine=Elsewhere())


# specifications

ADDRESSES = {
    "local": None,
    "ray": "local",
    "ray:auto": "auto",
    "ray:10.0.0.1:6379": "10.0.0.1:6379",
    "ray:[::1]:6379": "[::1]:6379",
    "ray:ray://head:10001": "ray://head:10001",
}
BAD = ("", "Ray", "ray:", "ray:head", "ray:head:gcs", "dask", "dask:head:1", "local:1")


@pytest.mark.parametrize(("spec", "address"), ADDRESSES.items(), ids=ADDRESSES)
def test_engine_specification_has_an_address(spec: str, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address(spec) == address


def test_ray_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_address("ray") == "10.0.0.1:6379"
    assert ray_address("local") is None


@pytest.mark.parametrize("spec", BAD)
def test_other_specifications_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="must be local, ray, ray:HOST:PORT or ray:auto"):
        ray_address(spec)


def test_audit_refuses_other_specifications() -> None:
    with pytest.raises(InputError, match="engine='dask'"):
        audited(linear(), engine="dask")


def pretend_ray(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    """Pretend that Ray is installed, or that it is not."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: (find("pytest") if installed else None) if name == "ray" else find(name, package),
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which no program answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


def test_missing_ray_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_ray(monkeypatch, installed=False)
    with pytest.raises(DependencyError, match=r"pip install 'pytest-gradmask\[ray\]'"):
        check_engine("ray")
    with opened("local", "cpu") as engine:
        assert engine is LOCAL


@pytest.mark.enable_socket
def test_silent_address_is_an_error(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    pretend_ray(monkeypatch, installed=True)
    with pytest.raises(EngineError, match=f"no cluster answers at {silent}.*ray start --head"):
        check_engine(f"ray:{silent}")
    monkeypatch.setenv("RAY_ADDRESS", silent)
    with pytest.raises(EngineError, match="no cluster answers"):
        check_engine("ray")


# the option


@pytest.mark.enable_socket
@pytest.mark.parametrize("twin", ["option", "ini"])
def test_silent_cluster_is_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, silent: str, twin: str
) -> None:
    pretend_ray(monkeypatch, installed=True)
    pytester.makepyfile(AUDIT_TEST)
    if twin == "ini":
        pytester.makeini(f"[pytest]\ngradmask_engine = ray:{silent}")
    options = [f"--gradmask-engine=ray:{silent}"] if twin == "option" else []
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-engine: *no cluster answers at {silent}*"])


def test_missing_ray_is_a_usage_error(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_ray(monkeypatch, installed=False)
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", "--gradmask-engine=ray")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradmask-engine: *pip install 'pytest-gradmask?ray?'*"])


@pytest.mark.enable_socket
def test_without_audits_no_cluster_is_contacted(pytester: pytest.Pytester, silent: str) -> None:
    pytester.makepyfile(AUDIT_TEST)
    pytester.runpytest(f"--gradmask-engine=ray:{silent}").assert_outcomes(passed=1, skipped=1)
