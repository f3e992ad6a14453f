"""The scripts that measure the cost of this package beside alternatives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.caching import cache_gain
from benchmarks.chunks import chunk_costs
from benchmarks.growth import growth, passes
from benchmarks.memory import Apart
from benchmarks.page import PAGE, _by_hand, text
from benchmarks.records import machine, store, stored
from benchmarks.steps import step_costs
from benchmarks.strength import strengths
from benchmarks.verdicts import time_to_verdict
from pytest_gradmask import Defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.datasets import Dataset
from tests.toys import IMAGES, Noisy, Quantize, convolutional, global_state, linear, predictions


def test_time_to_verdict_times_both_ways_on_the_same_images() -> None:
    model = linear(10)  # AutoAttack needs more than four classes
    images = 0.5 + 0.01 * (IMAGES - 0.5)  # near the boundary, so that AutoAttack's first attack breaks them all
    data = Dataset(images, predictions(model, images), "toys")
    before = global_state()
    lines: list[object] = []
    record = time_to_verdict("linear", Defense(model), data, budget="smoke", progress=lines.append)
    assert global_state() == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (record["verdict"], record["images"], record["clean"]) == ("NOT_MASKED", len(images), 1.0)
    assert record["ratio"] == (record["autoattack_seconds"] + record["bpda_seconds"]) / record["seconds"]
    assert record["autoattack"] == record["with_bpda"] == record["all"] == 0.0
    assert [str(line) for line in lines[:2]] == ["audit", "preflight"]
    assert lines[-5:] == ["bpda", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert record["stopped"] is None


def test_interrupted_time_to_verdict_continues(tmp_path: Path) -> None:
    model = nn.Sequential(Quantize(), linear(10)).eval()
    images = 0.5 + 0.01 * (IMAGES - 0.5)
    data = Dataset(images, predictions(model, images), "toys")
    lines: list[object] = []
    first, second = (
        time_to_verdict("toy", Defense(model), data, budget="smoke", stages=tmp_path, progress=lines.append)
        for _ in range(2)
    )
    assert first == second
    assert lines.count("audit") == lines.count("apgd-ce") == lines.count("bpda") == 1
    (tmp_path / "bpda.pt").unlink()
    third = time_to_verdict("toy", Defense(model), data, budget="smoke", stages=tmp_path, progress=lines.append)
    assert (lines.count("audit"), lines.count("bpda")) == (1, 2)
    assert {**third, "bpda_seconds": 0, "ratio": 0} == {**first, "bpda_seconds": 0, "ratio": 0}


def test_resumed_run_of_a_randomized_model_keeps_survivors(tmp_path: Path) -> None:
    model = Noisy(linear(10), 0.05).eval()
    images = 0.5 + 0.01 * (IMAGES - 0.5)
    data = Dataset(images, predictions(linear(10), images), "toys")
    lines: list[object] = []
    for _ in range(2):
        time_to_verdict("toy", Defense(model), data, budget="smoke", stages=tmp_path, progress=lines.append)
        (tmp_path / "square.pt").unlink()
    assert (lines.count("apgd-ce"), lines.count("square")) == (1, 2)


def test_work_by_hand_is_stopped_after_a_limit() -> None:
    model = linear(10)
    data = Dataset(IMAGES, predictions(model, IMAGES), "toys")
    record = time_to_verdict("toy", Defense(model), data, budget="smoke", enough=0)
    assert record["stopped"] == "apgd-ce"
    assert record["ratio"] >= 0
    assert not model._forward_pre_hooks
    ratio = "**> {ratio:.1f}**, stopped in `apgd-ce`".format(**record)
    assert _by_hand(record) == (ratio, "-", f"at most {100 * record['with_bpda']:.1f}")


def test_a_step_is_timed_in_each_way() -> None:
    model = nn.Sequential()
    model.add_module("front_end", Quantize())
    model.add_module("backbone", convolutional())
    data = Dataset(IMAGES, predictions(model, IMAGES), "toys")
    record = step_costs("toy", model.eval(), data, rounds=2)
    assert set(record["seconds"]) == {"upstream", "ours", "ours, BPDA"}
    assert set(record["ratios"]) == set(record["spread"]) == {"ours", "ours, BPDA"}
    for which, (low, high) in record["spread"].items():
        assert 0 < low <= record["ratios"][which] <= high
    assert set(step_costs("bare", convolutional(), data, rounds=1)["ratios"]) == {"ours"}


def test_step_is_timed_on_correctly_classified_images() -> None:
    labels = predictions(linear(), IMAGES)
    some = torch.where(torch.arange(len(labels)) < 5, labels, 1 - labels)
    assert step_costs("toy", linear(), Dataset(IMAGES, some, "toys"), rounds=1)["images"] == 5
    with pytest.raises(InputError, match="none of"):
        step_costs("toy", linear(), Dataset(IMAGES, 1 - labels, "toys"), rounds=1)


def test_strengths_are_judged_alike_at_as_many_steps() -> None:
    data = Dataset(IMAGES, predictions(convolutional(), IMAGES), "toys")
    record = strengths("toy", Defense(convolutional()), data, steps=3)
    rows = {(row["attack"], row["library"]): row for row in record["rows"]}
    assert {("pgd", "pytest-gradmask"), ("apgd", "pytest-gradmask"), ("apgd", "autoattack")} <= rows.keys()
    assert record["clean"] == 1.0
    assert all(0 < row["backwards"] <= row["forwards"] <= 6 and row["backwards"] <= 4 for row in rows.values())
    left = {
        library: min(row["accuracy"][0] for row in record["rows"] if row["library"] == library) for _, library in rows
    }
    others = min(value for library, value in left.items() if library != "pytest-gradmask")
    assert record["above_best_peer"] == left["pytest-gradmask"] - others


def test_a_second_audit_is_faster() -> None:
    data = Dataset(IMAGES, predictions(linear(), IMAGES), "toys")
    record = cache_gain("linear", lambda: Defense(linear()), data, budget="smoke", rounds=1)
    assert record["cached"]
    assert record["ratio"] == record["first"] / record["again"] > 1


def test_growth_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(_run: object, _axis: str, value: int, *_: object, device: str) -> Apart:
        assert device == "cpu"
        return Apart(0.001 * value**2 if value < 100 else 0.1 * value, 500.0 + value)

    monkeypatch.setattr("benchmarks.growth.apart", apart)
    found = growth("pixels", values=(10, 20, 40))
    assert (found["exponent"], found["last"]) == pytest.approx((2, 2))
    assert [row["mebibytes"] for row in found["rows"]] == [10, 20, 40]
    assert growth("pixels", values=(50, 100, 200))["last"] == pytest.approx(1)
    with pytest.raises(InputError, match="'colours' is not known; it can be images, pixels"):
        growth("colours")


def test_passes_are_counted_where_nothing_breaks() -> None:
    found = passes("smoke", images=2)
    assert found["forwards"] == sum(found["attacks"].values())
    # APGD-20 makes a forward and a backward at the start and in each step, and upstream a last forward.
    assert 60 <= found["attacks"]["apgd-ce"] <= 70
    assert found["attacks"]["square"] >= 200
    assert 0.05 < found["first"] < 0.5


def test_images_at_a_time_are_timed_and_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(run: Callable[..., object], name: str, *arguments: object, device: str) -> Apart:
        assert device == "cpu"
        return Apart(run(name, *arguments), 500.0 + (arguments[0] if isinstance(arguments[0], int) else 0))

    monkeypatch.setattr("benchmarks.chunks.apart", apart)
    found = chunk_costs("two-layers", sizes=(10, 400))
    assert [(row["images"], row["mebibytes"]) for row in found["rows"]] == [(10, 10), (400, 400)]
    small, large = (row["microseconds"] for row in found["rows"])
    assert small > 3 * large > 0  # most of the time of ten tiny images is not theirs
    assert found["chunk"] > 1000
    with pytest.raises(InputError, match="'three-layers' is not known; it can be two-layers"):
        chunk_costs("three-layers")


def test_the_page_on_scaling_has_the_stored_figures() -> None:
    found = {record["model"]: record for record in stored("chunks-")}
    page = (PAGE.parent / "scaling.md").read_text()
    rows = {
        "two-layers": "two linear layers, 8 x 8 pixels",
        "resnet-standard-composite": "ResNet with a front end, CIFAR-10",
        "resnet-50": "ResNet-50, 224 x 224",
    }
    for name, shown in rows.items():
        graph = found[name]["graph"]
        size = f"{graph:.3g} MiB" if graph > 1 else f"{graph * 1024:.1g} KiB"
        assert f"| {shown} | {size} | {found[name]['chunk']:,} |" in page
    shares = [round(100 * record["first"]) for record in stored("passes-")]
    assert f"made {min(shares)} to {max(shares)} % of the forwards" in (PAGE.parent / "statistics.md").read_text()


@pytest.mark.slow  # a process for each value, which imports torch
@pytest.mark.parametrize("axis", ["classes", "members"])
def test_a_growth_is_measured(axis: str) -> None:
    small, large = growth(axis, values=(2, 6))["rows"]
    assert 0 < small["seconds"] < 60
    assert large["mebibytes"] > 0


def test_page_shows_all_measurements(tmp_path: Path) -> None:
    where = {"machine": machine(), "data": "some.npz"}
    data = Dataset(IMAGES, predictions(convolutional(), IMAGES), "toys")
    store("step-toy", step_costs("toy", convolutional(), data, rounds=1) | where, tmp_path)
    store(
        "startup", {"rounds": 3, "with": 101.0, "without": 90.0, "more": 11.0, "spread": [9.0, 12.0]} | where, tmp_path
    )
    store("strength-toy", strengths("toy", Defense(convolutional()), data, steps=2) | where, tmp_path)
    rows = [{"value": value, "seconds": value / 10, "mebibytes": value} for value in (20, 60)]
    store("growth-images", {"axis": "images", "rows": rows, "exponent": 1.0, "last": 1.0} | where, tmp_path)
    page = text(tmp_path)
    assert "| images | 20, 60 | 2.0, 6.0 | 20, 60 | 1.00 | **1.00** |" in page
    assert "attacks with 2 steps on" in page
    assert "| toy | apgd | autoattack |" in page
    assert "## One step" in page
    assert "| 90 | 101 | **11** [9, 12] |" in page
    assert "Images of some.npz. Measured on cpu" in page
    assert "## Time to a verdict" not in page


def test_page_in_docs_shows_stored_results() -> None:
    assert PAGE.read_text() == text()


def test_records_are_stored_by_name(tmp_path: Path) -> None:
    store("verdict-a", {"ratio": 2}, tmp_path / "new")
    store("verdict-b", {"ratio": 3}, tmp_path / "new")
    store("step-a", {"ratio": 4}, tmp_path / "new")
    assert stored("verdict", tmp_path / "new") == [{"ratio": 2}, {"ratio": 3}]


def test_machine_is_described() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_name_that_is_no_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verdicts", "no-such-model", "--samples", "2", "--output", str(tmp_path)]) == 2
    assert "no-such-model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
