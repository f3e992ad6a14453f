"""The script that measures false alarms on honest models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from audits.honest import __main__, binarization, page
from audits.honest.measurement import measure, store, stored
from audits.honest.models import (
    CHECKPOINTS,
    NETWORKS,
    NUMBER,
    PRECISIONS,
    SCALES,
    THREATS,
    TRAININGS,
    WRAPPERS,
    Honest,
    build,
    honest_models,
)
from audits.honest.pictures import pictures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
PLAIN = Honest(
    number=0, network="linear", training="random", scale=1.0, precision="float32", wrapper="plain", threat="Linf 8/255"
)


def test_list_is_balanced_and_stable() -> None:
    models = honest_models()
    assert len({model.name for model in models}) == NUMBER
    assert models == honest_models()
    for name, values in {
        "network": [*NETWORKS, *CHECKPOINTS], "training": [*TRAININGS, "checkpoint"], "scale": SCALES,
        "precision": PRECISIONS, "wrapper": WRAPPERS, "threat": THREATS,
    }.items():  # fmt: skip
        counts = [sum(getattr(model, name) == value for model in models) for value in values]
        assert min(counts) >= 5, name


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_can_be_made(network: str) -> None:
    made = build(replace(PLAIN, network=network, number=3), pictures(16, seed=0))
    again = build(replace(PLAIN, network=network, number=3), pictures(16, seed=0))
    images = pictures(4, seed=1).images
    assert made(images).shape == (4, 10)
    assert torch.equal(made(images), again(images))


@pytest.mark.parametrize("wrapper", dict.fromkeys(WRAPPERS))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_wrappers_keep_the_answers(wrapper: str, precision: str) -> None:
    images = pictures(4, seed=1).images.to(PRECISIONS[precision])
    plain, wrapped = (
        build(replace(PLAIN, network="cnn-norm", precision=precision, wrapper=each), pictures(16, seed=0))
        for each in ("plain", wrapper)
    )
    torch.testing.assert_close(wrapped(images), plain(images))


@pytest.mark.parametrize("training", ["standard", "adversarial"])
def test_training_learns_the_patterns(training: str) -> None:
    model, data = build(replace(PLAIN, training=training), pictures(500, seed=0)), pictures(100, seed=1)
    assert (model(data.images).argmax(1) == data.labels).float().mean() > 0.5


def test_measurement_is_stored_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, measured = tmp_path / "results.json", []

    def record(honest: Honest, **_: Any) -> dict[str, Any]:
        measured.append(honest.number)
        if measured == [0]:
            return {"name": honest.name, "error": "DefenseError: not today"}
        return {"name": honest.name, "verdict": "NOT_MASKED", "findings": {}}

    monkeypatch.setattr(__main__, "measure", record)
    for end in ("2", "3"):
        assert __main__.main(["measure", "--end", end, "--output", str(file)]) == 0
    assert measured == [0, 1, 0, 2]
    assert list(stored(file)) == [model.name for model in honest_models()[:3]]


def test_an_honest_model_is_not_masked(tmp_path: Path) -> None:
    record = measure(PLAIN, samples=20, budget="smoke")
    assert record["verdict"] != "MASKED"
    assert record["undermining"] == []
    store({record["name"]: record}, tmp_path / "results.json")
    assert stored(tmp_path / "results.json") == {record["name"]: record}


def test_page_counts_false_alarms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(number: int, *findings: str, verdict: str = "NOT_MASKED") -> dict[str, Any]:
        honest = replace(PLAIN, number=number)
        properties = {
            name: getattr(honest, name) for name in ("network", "training", "scale", "precision", "wrapper", "threat")
        }
        return {
            **properties, "name": honest.name, "verdict": verdict, "findings": dict.fromkeys(findings, ""),
            "undermining": [each for each in findings if each == "zero-gradient"], "images": 30, "budget": "smoke",
        }  # fmt: skip

    records = [record(0), record(1, "saturated-logits"), record(2, "zero-gradient", verdict="INCONCLUSIVE")]
    file = tmp_path / "limits.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", file)
    page.write({each["name"]: each for each in records})
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| [zero-gradient](findings.md#zero-gradient) | yes | 1 of 3 | 33.3% |" in text
    assert "| [saturated-logits](findings.md#saturated-logits) |  | 1 of 3 |" in text
    assert f"| {replace(PLAIN, number=2).name} | zero-gradient |" in text


def test_page_shows_the_stored_records() -> None:
    assert page.markdown(stored()) in page.PAGE.read_text()


def test_shares_of_the_binarization_test_are_stored_apart(capsys: pytest.CaptureFixture[str]) -> None:
    binarization.main(["--table"])
    chosen_with, trained, random = capsys.readouterr().out.split("held out")
    assert chosen_with.startswith("chosen with: cifar10-resnet20, ")
    assert "vgg-standard" in chosen_with
    assert "vgg-standard" not in trained
    assert "cifar10-resnet32" in trained
    assert "shufflenet" in random
    assert all("| APGD-20 | " in part for part in (chosen_with, trained, random))


def test_a_row_counts_the_images_at_the_threshold() -> None:
    stored = {"a": {"Linf": {"PGD": [0.5, 0.75], "passed": [1.0]}}, "b": {"L2": {"PGD": [1.0]}}}
    assert binarization.table(stored, ["a", "b"]) == ["| PGD | 50% | 75% | 100% | 2 of 3 |"]
    assert binarization.table(stored, ["b"]) == ["| PGD | 100% | 100% | 100% | 1 of 1 |"]
