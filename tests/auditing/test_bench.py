"""Timing attacks: what is run, what is counted, what is told beside the timing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask import Defense, ThreatModel
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.auditing.bench import bench, extra_info, forget_peak, peak_memory
from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.report.costs import main, plot_attack_costs, read_costs
from tests.plugin.test_reporting import DEFENSES
from tests.toys import CPU, IMAGES, TINY, KillGradient, Noisy, global_state, linear, masked, predictions

THREAT = ThreatModel(0.15)
LABELS = predictions(linear(), IMAGES)


def on(model: nn.Module | Defense) -> Any:
    return bench(model, IMAGES, LABELS, threat=THREAT, budget=TINY)


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "bpda", "square"])
def test_an_attack_runs_alike_each_time(attack: str) -> None:
    """An attack runs alike each time and counts its own passes."""
    with on(masked(KillGradient)) as prepared:
        run = prepared.runner(attack)
        first, second = run(), run()
    assert (first.broken, first.forwards, first.backwards) == (second.broken, second.forwards, second.backwards)
    assert first.forwards > 0
    assert len(first.attacked) == sum(prepared.clean) == len(IMAGES)


def test_an_attack_of_ones_own_runs_too() -> None:
    def mine(*arguments: Any, **options: Any) -> torch.Tensor:
        return pgd(*arguments, steps=3, **options)

    with on(linear()) as prepared:
        result = prepared.runner(mine)()
        share = prepared.accuracy(result)
    assert result.name == "mine"
    assert result.forwards == 4 * len(IMAGES)
    assert share.count == len(IMAGES) - len(result.broken) < len(IMAGES)


def test_randomized_defenses_are_sampled() -> None:
    with on(Noisy(linear(), 0.05).eval()) as prepared:
        result = prepared.runner("apgd-ce")()
        assert len(result.predictions) == len(result.attacked)
        assert 0 <= prepared.accuracy(result).value < 1


@pytest.mark.parametrize("attack", ["bpda", "apgd"])
def test_an_attack_that_does_not_run_is_an_error(attack: str) -> None:
    """An attack that does not run is an error that names those that do."""
    with on(linear()) as prepared, pytest.raises(InputError, match=rf"attack='{attack}': .* use one of pgd, apgd-ce"):
        prepared.runner(attack)


def test_a_failed_attack_is_not_timed() -> None:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise ZeroDivisionError("mine")

    with on(linear()) as prepared, pytest.raises(RuntimeError, match="broken failed: ZeroDivisionError: mine"):
        prepared.runner(broken)()


def test_no_trace_is_left() -> None:
    model = Noisy(linear()).eval()
    before = global_state()
    with on(model) as prepared:
        prepared.runner("pgd" if "pgd" in prepared.attacks else "apgd-ce")()
    assert global_state() == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_peak_memory_is_that_since_it_was_forgotten() -> None:
    if peak_memory(CPU) is None:
        pytest.skip("peak memory of a process is known on Linux only")
    large = torch.ones(64 << 20)  # 256 MiB
    del large
    before = peak_memory(CPU)
    forget_peak(CPU)
    after = peak_memory(CPU)
    assert before is not None
    assert after is not None
    if after == before:
        pytest.skip("the peak of a process cannot be reset here")
    assert after < before - (128 << 20)


def test_what_belongs_beside_a_timing() -> None:
    with on(linear()) as prepared:
        result = prepared.runner("apgd-ce")()
        info = extra_info(prepared, result, [2.0, 1.0], CPU, 123)
    assert json.loads(json.dumps(info)) == info
    assert info["images"] == len(IMAGES)
    assert info["seconds_per_image"] == 1 / len(IMAGES)
    assert info["forwards_per_image"] >= info["backwards_per_image"] >= TINY.apgd_steps
    assert info["robust_accuracy"][0] == prepared.accuracy(result).value
    assert info["peak_memory"] == 123


# the fixture

TESTS = (
    DEFENSES
    + """
    @pytest.mark.parametrize("attack", ["pgd", "bpda"])
    def test_cost(benchmark_attack, attack):
        model = masked()
        result = benchmark_attack(model, *batch(model), attack, rounds=2)
        assert result.name == attack
"""
)
RUN = ("--gradmask", "--gradmask-device=cpu", "-p", "no:xdist")


@pytest.fixture(autouse=True)
def not_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark times nothing where it believes to be a worker of xdist, as these tests themselves may be."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def timed(pytester: pytest.Pytester) -> Path:
    """The file of a run with --benchmark-json."""
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "--benchmark-only", "--benchmark-json=out.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*benchmark 'Sequential: bpda'*", "test_cost*"])
    return pytester.path / "out.json"


def test_the_fixture_times_attacks_and_tells_what_they_cost(timed: Path) -> None:
    pgd_cost, bpda_cost = read_costs(timed)
    assert (pgd_cost["defense"], pgd_cost["attack"], bpda_cost["attack"]) == ("Sequential", "pgd", "bpda")
    assert bpda_cost["robust_accuracy"][0] < pgd_cost["robust_accuracy"][0]
    assert pgd_cost["backwards_per_image"] == 30
    benchmarks = json.loads(timed.read_text())["benchmarks"]
    assert {each["stats"]["rounds"] for each in benchmarks} == {2}
    assert all(each["extra_info"]["seconds_per_image"] * 20 == each["stats"]["min"] for each in benchmarks)


def test_two_runs_can_be_compared(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest(*RUN, "--benchmark-only", "--benchmark-save=first").assert_outcomes(passed=2)
    result = pytester.runpytest(*RUN, "--benchmark-only", "--benchmark-compare=0001")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_cost*(0001_first)*"])


def test_without_timing_a_benchmark_is_skipped_and_not_passed(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "--benchmark-disable", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*nothing would be timed*"])


def test_an_unknown_attack_fails_the_benchmark(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile(test_it=TESTS.replace('["pgd", "bpda"]', '["magic"]'))
    result = pytester.runpytest(*RUN, "--benchmark-only")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*attack='magic': does not run on this defense; use one of pgd, *"])


# the plot


def cost(defense: str, attack: str, passes: float = 10.0, accuracy: float = 0.5) -> dict[str, Any]:
    return {
        "defense": defense, "attack": attack, "forwards_per_image": passes, "backwards_per_image": passes,
        "robust_accuracy": [accuracy, accuracy - 0.1, accuracy + 0.1],
    }  # fmt: skip


@pytest.mark.parametrize("defenses", [1, 3, 4])
def test_costs_are_drawn_with_a_panel_for_each_defense(tmp_path: Path, defenses: int) -> None:
    pytest.importorskip("matplotlib")
    costs = [cost(f"defense <{d}>", f"attack {a}", 10 * (a + 1)) for d in range(defenses) for a in range(9)]
    plot_attack_costs(costs, tmp_path / "new" / "costs.svg")
    drawn = (tmp_path / "new" / "costs.svg").read_text()
    assert all(f"defense &lt;{d}&gt;" in drawn for d in range(defenses))
    assert all(drawn.count(f"attack {a}<") == 1 for a in range(9))
    plot_attack_costs(costs, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_the_command_draws_what_a_run_has_measured(
    timed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main([str(timed), str(tmp_path / "costs.png")]) == 0
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert main([str(timed), str(tmp_path / "costs.txt")]) == 2
    assert main([str(tmp_path / "none.json"), str(tmp_path / "costs.png")]) == 2
    assert "not a file of pytest --benchmark-json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a file of pytest --benchmark-json"),
        ("{", "not a file of pytest --benchmark-json"),
        ("[]", "not a file of pytest --benchmark-json"),
        ('{"benchmarks": [{"extra_info": {}}]}', "no benchmark in it used the fixture benchmark_attack"),
    ],
)
def test_a_file_without_costs_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "out.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_costs(file)


@pytest.mark.parametrize(
    ("attack", "library"), [("pgd", "foolbox"), ("pgd", "pytest-gradmask"), ("apgd", "autoattack")]
)
def test_peers_attack_with_the_steps_they_are_given(attack: str, library: str) -> None:
    from audits.peers import PEERS, installed

    package, run = PEERS[attack, library]
    if not installed(package):
        pytest.skip(f"{package} is not installed")

    def mine(*arguments: Any, **options: Any) -> torch.Tensor:
        return run(*arguments, steps=5, **options)

    with on(linear()) as prepared:
        result = prepared.runner(mine)()
    assert result.backwards >= 5 * len(IMAGES)
    assert not result.invalid
    assert len(result.broken) > len(IMAGES) / 2
