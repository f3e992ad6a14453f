"""What the rule for hopeless images is calibrated on, and what it says of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.losses import VARIANTS, losses
from benchmarks.queries import ATTACKS, TIMES, gave_up, margin_growth, reached
from benchmarks.records import stored
from benchmarks.searches import PRECISIONS, searches
from benchmarks.surrogates import surrogates
from pytest_gradmask import Defense
from pytest_gradmask.loading.datasets import Dataset
from tests.toys import Quantize, draw, masked, predictions

MODEL = masked(Quantize)
IMAGES = draw(20, 3, 8, 8, seed=5)
DATA = Dataset(IMAGES, predictions(MODEL, IMAGES), "toys")


@pytest.mark.parametrize(
    ("gone", "when"),
    [
        ([0.2, 0.3, 0.5, 0.6, 0.8, 0.9, 0.95], 1.0),
        ([0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], 0.3),
        ([0.1, 0.2, 0.35, 0.45, 0.45, 0.5, 0.5], 0.5),
        ([0.1, 0.2, 0.4, 1.2, 1.2, 1.2, 1.2], None),
        ([1.5, None, None, None, None, None, None], None),
    ],
)
def test_when_an_image_is_given_up(gone: list[float | None], when: float | None) -> None:
    assert gave_up(TIMES, gone) == when


def test_no_stored_image_that_breaks_is_given_up() -> None:
    lost, broken = 0, 0
    for record in stored("queries"):
        for images in record["growth"].values():
            for image in images:
                if reached(image["gone"]) >= 1:
                    broken += 1
                    lost += gave_up(TIMES, image["gone"]) is not None
    assert broken > 100
    assert lost == 0


def test_margins_are_recorded() -> None:
    record = margin_growth("quantized", Defense(MODEL), DATA, budget="smoke")
    assert set(record["growth"]) == set(ATTACKS)
    for images in record["growth"].values():
        assert 0 < len(images) <= record["survivors"]
        for image in images:
            shares = [each for each in image["gone"] if each is not None]
            assert shares == sorted(shares), "the best margin so far only grows"


def test_bfloat16_loses_next_to_nothing() -> None:
    rows = [row for record in stored("searches") if record["chosen"] == "bfloat16" for row in record["rows"]]
    own, rough = (
        {(index, row["attack"], image) for index, row in enumerate(rows[start::2]) for image in row["broken"]}
        for start in range(2)
    )
    assert len(own) > 50
    assert len(own - rough) <= 0.1 * len(own)
    assert len(rough) >= 0.95 * len(own)


def test_both_precisions_are_measured() -> None:
    record = searches("quantized", Defense(MODEL), DATA, budget="smoke")
    assert [(row["attack"], row["precision"]) for row in record["rows"]] == [
        (attack, precision) for attack in ATTACKS for precision in PRECISIONS
    ]
    assert all(row["broken"] for row in record["rows"] if row["attack"] == "square")


def test_variants_have_equal_passes() -> None:
    record = losses("quantized", Defense(MODEL), DATA)
    assert [row["variant"] for row in record["rows"]] == list(VARIANTS)
    assert {row["of"] for row in record["rows"]} == {len(IMAGES)}
    assert all(95 <= row["passes"] <= 110 for row in record["rows"] if row["broken"] < row["of"])


@pytest.mark.longer
def test_the_script_for_a_gpu_runs_dry_and_goes_on(tmp_path: Path) -> None:
    arguments = ["gpu", "--dry-run", "--output", str(tmp_path)]
    main(arguments)
    stored_parts = {file.name: json.loads(file.read_text()) for file in tmp_path.glob("gpu-*.json")}
    assert {part["part"] for part in stored_parts.values()} == {
        "throughput-resnet-20", "repeatability-resnet-20", "verdict-resnet-standard", "precision",
    }  # fmt: skip
    assert stored_parts["gpu-repeatability-resnet-20.json"]["found"]["same_bits"]
    (tmp_path / "gpu-precision.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("gpu-*.json")}
    main(arguments)
    assert len(list(tmp_path.glob("gpu-*.json"))) == 4
    assert all(file.stat().st_mtime_ns == when for file, when in before.items()), "measured again"


@pytest.mark.longer
def test_a_surrogate_is_trained_and_compared_at_equal_queries() -> None:
    record = surrogates("quantized", Defense(MODEL), DATA)
    rows = {row["attack"]: row for row in record["rows"]}
    assert list(rows) == ["square", "zero-order", "trained surrogate"]
    assert all(150 < row["queries"] <= 230 for row in rows.values())
    assert len({row["of"] for row in rows.values()}) == 1
    assert rows["trained surrogate"]["broken"] > 0  # it does find some
