"""Where attacks run makes no difference: chunks that share nothing, in any order, give the same audit."""

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
from tests.toys import IMAGES, KillGradient, Noisy, audited, linear, masked, predictions, timeless

LABELS = predictions(linear(), IMAGES)


class Elsewhere:
    """Works on a copy for each chunk, at once and from the last to the first."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.chunks: list[int] = []
        self.closed = 0

    def start(self, work: Any, chunks: Iterable[tuple[Any, ...]]) -> Made:
        self.begun.append(work.attack.name)
        chunks = list(chunks)
        self.chunks.append(len(chunks))
        results = [copy.deepcopy(work)(*copy.deepcopy(chunk)) for chunk in reversed(chunks)]
        return Made(self, results[::-1])


class Made:
    """Results that are there."""

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
    points = threat.project(images + threat.eps * (2 * torch.rand_like(images) - 1), images)
    model(points)
    return points


DEFENSES: dict[str, Callable[[], nn.Module | Defense]] = {
    "masked": lambda: masked(KillGradient),
    "randomized": lambda: Noisy(linear(), 0.05).eval(),
    "ensemble": ensemble,
    "with an attack of its own": lambda: Defense(linear(), attacks=[sloppy]),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.auditing.scoring._CHUNK", {"cpu": 10})


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES)
def test_the_audit_is_the_same_wherever_attacks_run(make: Callable[[], nn.Module | Defense]) -> None:
    engine = Elsewhere()
    here, there = (audited(make(), labels=LABELS, engine=some) for some in (LOCAL, engine))
    assert timeless(there) == timeless(here)
    assert all(attack.status != "failed" for attack in here.attacks)
    assert max(engine.chunks) > 1


@pytest.mark.usefixtures("small_chunks")
def test_so_is_one_that_runs_every_attack() -> None:
    here, there = (audited(masked(KillGradient), exhaustive=True, engine=some) for some in (LOCAL, Elsewhere()))
    assert timeless(there) == timeless(here)


def test_adaptive_attacks_are_begun_together_and_called_off_once_the_verdict_is_certain() -> None:
    engine = Elsewhere()
    audit = audited(masked(KillGradient), engine=engine)
    assert audit.verdict is Verdict.MASKED
    skipped_early = {attack.name for attack in audit.attacks if attack.status == "skipped-early"}
    assert skipped_early >= {"square", "zero-order"}
    assert set(engine.begun) >= skipped_early
    assert engine.closed == len(engine.begun)


def test_here_no_attack_runs_before_its_result_is_asked_for() -> None:
    asked: list[int] = []
    run = LOCAL.start(asked.append, [(1,), (2,)])
    assert not asked
    next(iter(run))
    run.close()
    assert asked == [1]


@pytest.mark.usefixtures("small_chunks")
def test_an_attack_that_raises_on_one_chunk_has_failed() -> None:
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
    """Loses whatever runs BPDA."""

    def start(self, work: Any, chunks: Iterable[tuple[Any, ...]]) -> Made:
        return Lost(self, []) if work.attack.name == "bpda" else super().start(work, chunks)


class Lost(Made):
    def __iter__(self) -> Iterator[Any]:
        raise LostWorkerError("WorkerCrashedError after 3 retries")


def test_an_attack_whose_worker_dies_for_good_has_failed() -> None:
    audit = audited(masked(KillGradient), engine=Deadly(), exhaustive=True)
    assert audit.attack("bpda").status == "failed"
    assert audit.attack("bpda").note == "WorkerCrashedError after 3 retries"
    assert audit.attack("square").status == "done"


class Counting(nn.Module):
    """Remembers how often it was asked."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.model(images)  # type: ignore[no-any-return]


def test_a_defense_that_changes_as_it_runs_is_warned_of_where_it_is_copied() -> None:
    with pytest.warns(UserWarning, match="Counting changes as it runs"):
        audited(Counting().eval(), engine=Elsewhere())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audited(Counting().eval())
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
def test_engines_are_named_by_a_word_and_an_address(
    spec: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address(spec) == address


def test_ray_alone_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_address("ray") == "10.0.0.1:6379"
    assert ray_address("local") is None


@pytest.mark.parametrize("spec", BAD)
def test_others_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="must be local, ray, ray:HOST:PORT or ray:auto"):
        ray_address(spec)


def test_an_audit_refuses_them_too() -> None:
    with pytest.raises(InputError, match="engine='dask'"):
        audited(linear(), engine="dask")


def installed(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Pretend that Ray is installed, or that it is not."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: (find("pytest") if there else None) if name == "ray" else find(name, package),
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which nobody answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{one.getsockname()[1]}"


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, False)
    with pytest.raises(DependencyError, match=r"pip install 'pytest-gradmask\[ray\]'"):
        check_engine("ray")
    with opened("local", "cpu") as engine:
        assert engine is LOCAL


@pytest.mark.enable_socket
def test_an_address_where_nobody_answers_is_an_error(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    installed(monkeypatch, True)
    with pytest.raises(EngineError, match=f"nobody answers at {silent}.*ray start --head"):
        check_engine(f"ray:{silent}")
    monkeypatch.setenv("RAY_ADDRESS", silent)
    with pytest.raises(EngineError, match="nobody answers"):
        check_engine("ray")


# the option


@pytest.mark.enable_socket
@pytest.mark.parametrize("twin", ["option", "ini"])
def test_a_cluster_that_does_not_answer_is_a_usage_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, silent: str, twin: str
) -> None:
    installed(monkeypatch, True)
    pytester.makepyfile(AUDIT_TEST)
    if twin == "ini":
        pytester.makeini(f"[pytest]\ngradmask_engine = ray:{silent}")
    options = [f"--gradmask-engine=ray:{silent}"] if twin == "option" else []
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gradmask-engine: *nobody answers at {silent}*"])


def test_ray_that_is_not_installed_is_a_usage_error(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, False)
    pytester.makepyfile(AUDIT_TEST)
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", "--gradmask-engine=ray")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradmask-engine: *pip install 'pytest-gradmask?ray?'*"])


@pytest.mark.enable_socket
def test_where_no_audit_runs_no_cluster_is_asked(pytester: pytest.Pytester, silent: str) -> None:
    pytester.makepyfile(AUDIT_TEST)
    pytester.runpytest(f"--gradmask-engine=ray:{silent}").assert_outcomes(passed=1, skipped=1)
