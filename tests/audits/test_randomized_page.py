"""The measurements of docs/randomized.md on few images, and the page itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from audits.randomized import __main__ as command
from audits.randomized.calibration import error_rates
from audits.randomized.coverage import coverage
from audits.randomized.duel import duel
from audits.randomized.page import PAGE, text
from audits.zoo import find
from pytest_gradmask import load_dataset
from pytest_gradmask.loading.datasets import Dataset
from tests.toys import draw, linear


def test_the_page_is_what_was_measured() -> None:
    assert PAGE.read_text() == text(command.RESULTS)


def test_stored_bounds_hold_as_often_as_they_should() -> None:
    for file in command.RESULTS.glob("*.json"):
        record = json.loads(file.read_text())
        if "repetitions" in record:
            # Of 200 tries at 95 %, fewer than 179 hold once in a thousand.
            assert min(record["accuracy"]) * record["repetitions"] >= 179
            assert record["repetitions"] >= 200


def test_stored_error_rates_are_low_and_power_is_high() -> None:
    cells = json.loads((command.RESULTS / "calibration.json").read_text())["cells"]
    for cell in cells:
        assert cell["audits"] == 10_000
        if cell["gap"] == 0:
            assert cell["MASKED"] <= 100
        if cell["gap"] >= 0.2 and cell["images"] == 200:
            assert cell["MASKED"] >= 9_500


def test_few_simulated_audits_are_as_the_stored_ones() -> None:
    stored = json.loads((command.RESULTS / "calibration.json").read_text())["cells"]
    for few, many in zip(error_rates(20), stored, strict=True):
        for verdict in ("MASKED", "NOT_MASKED", "INCONCLUSIVE"):
            # In none of 72 comparisons, at a chance of one in a million each.
            assert binomtest(few[verdict], 20, many[verdict] / 10_000).pvalue > 1e-6


@pytest.mark.longer
def test_coverage_of_a_noisy_model() -> None:
    data = load_dataset("embedded", samples=10)
    (entry,) = find(["noise"])
    found = coverage(entry, data, repetitions=4, truth=20)
    assert found["defense"] == "noise"
    assert (found["pool"], found["repetitions"], found["one_by_one"]) == (10, 4, False)
    assert all(0 <= share <= 1 for share in (*found["accuracy"], *found["image"]))
    assert found == coverage(entry, data, repetitions=4, truth=20)


def test_attacks_side_by_side_cost_about_the_same() -> None:
    members = [linear(seed=0), linear(seed=1)]
    images = draw(10, 3, 8, 8)
    labels = members[0](images).argmax(1)
    found = duel("toys", members, Dataset(images, labels, "toys"), steps=20)
    rows = found["attacks"]
    clean, passes = rows.pop("clean"), {name: row["passes"] for name, row in rows.items()}
    assert clean["passes"] == 0
    exact = torch.stack([(member(images).argmax(1) == labels).float().mean() for member in members]).mean()
    assert clean["accuracy"][0] == pytest.approx(float(exact))
    # Attacks on the expected loss stop once all members are fooled.
    assert max(passes.values()) < 1.4 * passes["APGD, EOT"]
    assert rows["ARC"]["accuracy"][0] <= rows["APGD, EOT"]["accuracy"][0]


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nobody"])
    assert "nobody: unknown; there are resize-and-pad" in capsys.readouterr().err


def test_the_command_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "write", lambda results: (tmp_path / "page.md").write_text(text(results)))
    monkeypatch.setattr(
        command, "coverage", lambda entry, *args, **kwargs: coverage(entry, *args, repetitions=1, truth=3)
    )
    command.main(["noise", "--measure", "embedded", "--samples", "5"])
    assert "| noise |" in (tmp_path / "page.md").read_text()
