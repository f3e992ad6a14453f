"""The fixture ``benchmark_attack``: time single attacks with pytest-benchmark."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradmask.plugin.extensions import with_attacks
from pytest_gradmask.plugin.marker import read_marker
from pytest_gradmask.plugin.stash import SETTINGS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pytest_gradmask.defense import Defense
    from pytest_gradmask.verdict.results import AttackResult


if importlib.util.find_spec("pytest_benchmark") is None:

    @pytest.fixture
    def benchmark_attack() -> Callable[..., Any]:
        """Without pytest-benchmark, nothing can be timed, and the test is skipped."""
        pytest.skip("needs pytest-benchmark: pip install 'pytest-gradmask[benchmark]'")

else:

    @pytest.fixture
    def benchmark_attack(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., AttackResult]:
        """Times one attack on a defense with pytest-benchmark: ``benchmark_attack(defense, images, labels, "bpda")``.

        The attack is the name of an attack that audits run, or a function ``attack(model, images, labels, *, threat,
        generator) -> images``. Reports use ``name=``. The attack runs ``rounds=3`` times, after one run that is not
        timed. Results are grouped by defense and attack. Their ``extra_info`` has seconds, forward and backward passes
        an image, peak memory and robust accuracy.
        """
        return functools.partial(_benchmark_attack, request, benchmark)


def _benchmark_attack(
    request: pytest.FixtureRequest,
    benchmark: Any,
    defense: Defense | nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: str | Callable[..., Tensor],
    *,
    name: str = "",
    rounds: int = 3,
) -> AttackResult:
    import torch

    from pytest_gradmask.auditing.bench import bench, extra_info, forget_peak, peak_memory

    if benchmark.disabled:
        # pytest-xdist and --benchmark-disable do that. An attack that is not timed must not look like one that was.
        pytest.skip("pytest-benchmark is disabled, so nothing would be timed")
    run_settings = request.config.stash[SETTINGS]
    settings = read_marker(request.node, run_settings)
    device = torch.device(run_settings.torch_device)
    attack_name = name or (attack if isinstance(attack, str) else getattr(attack, "__name__", "attack"))
    defense = with_attacks(request.node, defense)
    benchmark.group = f"{defense.name}: {attack_name}"
    with bench(
        defense, images, labels, threat=settings.threat, budget=settings.budget, device=str(device), seed=settings.seed
    ) as prepared:
        run = prepared.runner(attack)
        forget_peak(device)
        result: AttackResult = benchmark.pedantic(run, rounds=rounds, iterations=1, warmup_rounds=1)
        seconds = benchmark.stats.stats.data
        benchmark.extra_info.update(
            {"defense": defense.name, "attack": attack_name, "budget": settings.budget.name},
            **extra_info(prepared, result, seconds, device, peak_memory(device)),
        )
    return result
