"""Workers of pytest-xdist share the machine: each has a GPU and some of the CPUs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pytest_gradmask.plugin.machines import share_of_cpus
from pytest_gradmask.plugin.settings import Settings
from pytest_gradmask.plugin.stash import SETTINGS
from tests.plugin.test_reporting import DEFENSES
from tests.report.report_toys import timeless_json


def settings(device: str = "auto", worker: int = 0, workers: int = 1, engine: str = "local") -> Settings:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(Settings))
    return Settings(**{**values, "device": device, "engine": engine, "worker": worker, "workers": workers})


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_worker_has_a_gpu_in_turn(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    devices = [settings(device, worker, 5).torch_device for worker in range(5)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize(
    ("arguments", "device"),
    [
        pytest.param({"worker": 3, "workers": 4, "device": "cuda:1"}, "cuda:1", id="the user's choice"),
        pytest.param({"worker": 3, "workers": 4, "device": "cpu"}, "cpu", id="the user's choice of none"),
        pytest.param({"worker": 3, "workers": 4, "engine": "ray"}, "cuda", id="Ray's choice"),
        pytest.param({}, "cuda", id="no workers"),
    ],
)
def test_a_device_that_is_chosen_otherwise(
    arguments: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 2)
    assert settings(**arguments).torch_device == device


def test_without_gpus_workers_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert settings(worker=1, workers=2).torch_device == "cpu"


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("workers", "cpus", "threads"), [(1, 8, 4), (2, 8, 4), (2, 4, 2), (3, 8, 2), (8, 4, 1)], ids=str
)
def test_workers_share_the_cpus(workers: int, cpus: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("pytest_gradmask.plugin.machines._cpus", lambda: cpus)
    config = cast(pytest.Config, SimpleNamespace(stash={SETTINGS: settings(workers=workers)}))
    with contextlib.suppress(KeyboardInterrupt), share_of_cpus(config):
        assert torch.get_num_threads() == threads
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with share_of_cpus(config):
        assert torch.get_num_threads() == 4


TESTS = (
    DEFENSES
    + """
    from pytest_gradmask import Defense
    from pytest_gradmask.plugin import machines
    from pytest_gradmask.plugin.stash import SETTINGS

    def count(model, images, labels, *, threat, generator):
        count.threads = torch.get_num_threads()
        model(images)
        return images

    def test_threads(gradmask, monkeypatch):
        monkeypatch.setattr(machines, "_cpus", lambda: 6)
        torch.set_num_threads(4)
        model = masked()
        gradmask.audit(Defense(model, attacks=[count]), *batch(model))
        assert (count.threads, torch.get_num_threads()) == (3, 4)

    def test_device(request, worker_id, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        assert request.config.stash[SETTINGS].torch_device == {"gw0": "cuda:0", "gw1": "cuda:1"}[worker_id]
"""
)


@pytest.mark.longer
def test_workers_report_to_the_controller(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pytester.makepyfile(test_it=TESTS)
    options = ("--gradmask", "--gradmask-json=out.json")
    # Each worker runs every test.
    result = pytester.runpytest(*options, "--gradmask-no-cache", "-n2", "--dist=each")
    result.assert_outcomes(passed=4)
    first, second = json.loads((pytester.path / "out.json").read_text())["audits"]
    assert timeless_json(first) == timeless_json(second)
