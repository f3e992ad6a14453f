"""The fixtures. Each imports what needs torch when it is first used."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_gradmask.plugin.extensions import more_probes, with_attacks
from pytest_gradmask.plugin.machines import running_engine, share_of_cpus
from pytest_gradmask.plugin.marker import TestSettings, read_marker
from pytest_gradmask.plugin.progress import progress_line, uncaptured
from pytest_gradmask.plugin.stash import AUDITS, EVIDENCE, SETTINGS, TRANSFERS
from pytest_gradmask.plugin.timeout import time_limit

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_gradmask.defense import Defense
    from pytest_gradmask.loading.datasets import Dataset, Unread
    from pytest_gradmask.threat import ThreatModel
    from pytest_gradmask.transfer.matrix import TransferMatrix
    from pytest_gradmask.verdict.audit import Audit
    from pytest_gradmask.verdict.results import AttackResult


class EvalBatch(NamedTuple):
    """Evaluation images (float32, N x C x H x W, in [0, 1]) and their labels (int64, N)."""

    images: torch.Tensor
    labels: torch.Tensor


class Gradmask:
    """What the ``gradmask`` fixture gives a test: audits with the run's and the test's settings."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._node = request.node
        self._config = request.config
        self._audits = 0
        self.settings: TestSettings = read_marker(request.node, request.config.stash[SETTINGS])

    def audit(self, defense: Defense | nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Audit:
        """Audit a defense on these images; see `pytest_gradmask.audit`. The result joins the run's report."""
        from dataclasses import replace

        from pytest_gradmask.auditing.run import audit
        from pytest_gradmask.report.json import crash_to_json, to_json

        own = self.settings
        try:
            defense = with_attacks(self._node, defense)
            with (
                share_of_cpus(self._config),
                progress_line(self._config, self._node.nodeid, images) as progress,
                time_limit(self._config.stash[SETTINGS].timeout),
            ):
                result = audit(
                    defense,
                    images,
                    labels,
                    threat=own.threat,
                    budget=own.budget,
                    margin=own.margin,
                    confidence=own.confidence,
                    device=self._config.stash[SETTINGS].torch_device,
                    seed=own.seed,
                    exhaustive=own.exhaustive,
                    probes=more_probes(self._node, defense),
                    cache=_cache_folder(self._config),
                    engine=running_engine(self._config),
                    progress=progress,
                )
        except Exception as error:
            name = getattr(defense, "name", type(defense).__name__)
            self._record(crash_to_json(self._node.nodeid, name, error))
            raise
        result = replace(result, test=self._node.nodeid)
        self._record(to_json(result))
        # After the record: a test that is stopped meanwhile still has its audit.
        self._node.stash[EVIDENCE][-1] = self._evidence(result, defense, images, labels)
        return result

    def _record(self, audit: dict[str, Any]) -> None:
        from pytest_gradmask.report.properties import properties

        self._node.stash.setdefault(AUDITS, []).append(audit)
        self._node.stash.setdefault(EVIDENCE, []).append({})
        self._audits += 1
        self._node.user_properties += properties(audit, self._audits)

    def _evidence(
        self, result: Audit, defense: Defense | nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, Any]:
        """What the HTML report shows beyond the audit; nothing, at no cost, where there is none."""
        settings = self._config.stash[SETTINGS]
        if settings.html is None:
            return {}
        from pytest_gradmask.report.evidence.collection import collect_evidence

        with share_of_cpus(self._config), progress_line(self._config, self._node.nodeid, images) as progress:
            return collect_evidence(
                result,
                defense,
                images,
                labels,
                threat=self.settings.threat,
                device=settings.torch_device,
                seed=self.settings.seed,
                progress=progress,
            )


def _cache_folder(config: pytest.Config) -> Path | None:
    settings = config.stash[SETTINGS]
    if settings.no_cache:
        return None
    if settings.cache is not None:
        return settings.cache
    # Without pytest's cache plugin (-p no:cacheprovider) nothing is kept.
    return Path(config.cache.mkdir("gradmask")) if getattr(config, "cache", None) is not None else None


@pytest.fixture
def gradmask(request: pytest.FixtureRequest) -> Gradmask:
    """Audits defenses: ``gradmask.audit(defense, images, labels)``."""
    return Gradmask(request)


@pytest.fixture
def threat_model(request: pytest.FixtureRequest) -> ThreatModel:
    """The test's threat model: Linf, 8/255, bounds [0, 1], unless its marker says otherwise."""
    return read_marker(request.node, request.config.stash[SETTINGS]).threat


@pytest.fixture
def transfer_matrix(request: pytest.FixtureRequest, gradmask: Gradmask) -> Callable[..., TransferMatrix]:
    """The function `pytest_gradmask.transfer.run.transfer_matrix` with the run's and the test's settings.

    Threat model, seed, device and confidence are theirs, the steps those of BPDA in their budget. Each can be given.
    """
    from pytest_gradmask.report.json import transfer_to_json
    from pytest_gradmask.transfer.run import transfer_matrix

    own = gradmask.settings

    def recorded(*arguments: Any, **keywords: Any) -> TransferMatrix:
        matrix = transfer_matrix(*arguments, **keywords)
        request.node.stash.setdefault(TRANSFERS, []).append(transfer_to_json(request.node.nodeid, matrix))
        return matrix

    return functools.partial(
        share_of_cpus(request.config)(recorded),
        threat=own.threat,
        steps=own.budget.bpda_steps,
        confidence=own.confidence,
        seed=own.seed,
        device=request.config.stash[SETTINGS].torch_device,
    )


@pytest.fixture
def eval_batch(request: pytest.FixtureRequest) -> EvalBatch:
    """Evaluation images and labels, as chosen by ``--gradmask-data`` and ``--gradmask-samples``."""
    data = _data(request)
    return EvalBatch(data.images.clone(), data.labels.clone())  # a test may change its own


def _data(request: pytest.FixtureRequest) -> Dataset:
    settings = request.config.stash[SETTINGS]
    own = read_marker(request.node, settings)
    with uncaptured(request.config, settings.download):
        return _load(settings.data, settings.download, own.samples, own.budget.samples, own.seed)


@functools.lru_cache(maxsize=2)
def _load(spec: str, download: bool, samples: int | None, at_most: int, seed: int) -> Dataset:
    data = _open(spec, download)
    # Where no number was asked for: the budget's, or all there are.
    return data.load(min(at_most, len(data)) if samples is None else samples, seed)


@functools.lru_cache(maxsize=2)
def _open(spec: str, download: bool) -> Unread:
    from pytest_gradmask.loading.datasets import open_dataset

    return open_dataset(spec, download=download)


@pytest.fixture
def gradmask_model(request: pytest.FixtureRequest) -> nn.Module:
    """The model of ``--gradmask-model``, on the CPU and in eval mode; parametrize indirectly for others.

    Beside ``eval_batch``, it has to have the classes of these images.
    """
    from pytest_gradmask.loading.sources import check_classes

    spec = getattr(request, "param", request.config.stash[SETTINGS].model)
    if spec is None:
        raise pytest.UsageError("the fixture gradmask_model needs --gradmask-model=MODEL, or its ini value")
    model = _model(request, spec)
    if "eval_batch" in request.fixturenames:
        data = _data(request)
        check_classes(spec, model, data.images, data.classes, data.source)
    return model


def _model(request: pytest.FixtureRequest, spec: str) -> nn.Module:
    from pytest_gradmask.loading.sources import load_model

    download = request.config.stash[SETTINGS].download
    with uncaptured(request.config, download):
        return load_model(spec, download=download)


def _model_fixture(name: str, default: str, what: str) -> Callable[..., Any]:
    @pytest.fixture(name=name)
    def model(request: pytest.FixtureRequest) -> nn.Module:
        return _model(request, getattr(request, "param", default))

    model.__doc__ = f"{what} of the trained fixtures, by default {default}; parametrize indirectly for another."
    return model


backbone = _model_fixture("backbone", "resnet-standard", "A classifier")
composite = _model_fixture("composite", "resnet-standard-composite", "A front end before a classifier")
ensemble = _model_fixture("ensemble", "standard-ensemble", "A randomized ensemble of composites")


if importlib.util.find_spec("pytest_benchmark") is None:

    @pytest.fixture
    def benchmark_attack() -> Callable[..., Any]:
        """Without pytest-benchmark, nothing is timed."""
        pytest.skip("needs pytest-benchmark: pip install 'pytest-gradmask[benchmark]'")

else:

    @pytest.fixture
    def benchmark_attack(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., AttackResult]:
        """Times one attack on a defense with pytest-benchmark: ``benchmark_attack(defense, images, labels, "bpda")``.

        The attack is the name of one of those that audits run, or a function ``attack(model, images, labels, *, threat,
        generator) -> images``; ``name=`` is for reports, ``rounds=3`` are timed after one that is not. Results are
        grouped by defense and attack, and carry seconds, forward and backward passes an image, peak memory and robust
        accuracy in ``extra_info``.
        """
        return functools.partial(_benchmark_attack, request, benchmark)


def _benchmark_attack(
    request: pytest.FixtureRequest,
    benchmark: Any,
    defense: Defense | nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: str | Callable[..., torch.Tensor],
    *,
    name: str = "",
    rounds: int = 3,
) -> AttackResult:
    import torch

    from pytest_gradmask.auditing.bench import bench, extra_info, forget_peak, peak_memory

    if benchmark.disabled:
        # Under xdist or --benchmark-disable: an attack that is not timed must not read as one that was.
        pytest.skip("pytest-benchmark is disabled, so nothing would be timed")
    settings = request.config.stash[SETTINGS]
    own = read_marker(request.node, settings)
    device = torch.device(settings.torch_device)
    called = name or (attack if isinstance(attack, str) else getattr(attack, "__name__", "attack"))
    defense = with_attacks(request.node, defense)
    benchmark.group = f"{defense.name}: {called}"
    with bench(
        defense, images, labels, threat=own.threat, budget=own.budget, device=str(device), seed=own.seed
    ) as prepared:
        run = prepared.runner(attack)
        forget_peak(device)
        result: AttackResult = benchmark.pedantic(run, rounds=rounds, iterations=1, warmup_rounds=1)
        seconds = benchmark.stats.stats.data
        benchmark.extra_info.update(
            {"defense": defense.name, "attack": called, "budget": own.budget.name},
            **extra_info(prepared, result, seconds, device, peak_memory(device)),
        )
    return result
