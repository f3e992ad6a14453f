"""The stored trainings as figures, and what they say of the paper's claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audits.trained_masks.claims import records
from audits.trained_masks.evidence import Evidence, bounded, load, mean_of, share_of
from pytest_gradmask.auditing.research import clopper_pearson


def run(name: str, *, pgd: float, bpda: float = 0.25, steps: tuple[int, ...] = (100,)) -> dict[str, Any]:
    """A result as `collect` writes it, on 64 images."""
    own = {"clean": 0.75, "pgd": pgd, "bpda": bpda, "residual_sd": 0.01, "residual_gain_gradient": 2.0}
    return {
        "recipe": {"name": name, "backbone": "vgg-standard", "depth": 49, "width": 16},
        "total": 1000,
        "versions": {"torch": "2"},
        "data": {"test": "test.npz"},
        "measurement": [{"step": step, "images": 64, "running": own} for step in steps],
    }


def keep(folder: Path, *results: dict[str, Any]) -> None:
    for result in results:
        (folder / f"{result['recipe']['name']}.json").write_text(json.dumps(result), encoding="utf-8")


def test_bounds_are_exact_and_of_counts() -> None:
    found = share_of(0.2188, 64)  # 14 of 64, in four digits
    assert (found.count, found.total) == (14, 64)
    assert (found.low, found.high) == clopper_pearson(14, 64, 0.99)
    assert bounded(found) == "21.9 % [11.2, 36.2]"


def test_a_mean_is_no_count() -> None:
    with pytest.raises(ValueError, match="use `mean_of`"):
        share_of(0.8021, 64)
    found = mean_of(0.8021, 64)
    assert found.low < share_of(0.7969, 64).low, "bounds of means are wider than those of counts"
    assert found.value == pytest.approx(0.8021)


@pytest.mark.parametrize(
    ("pgd", "bpda", "masked"),
    [(0.75, 0.25, True), (0.3125, 0.25, False), (0.3125, 0.0, False), (0.25, 0.25, False)],
    ids=["mask", "bounds overlap", "less than half of the clean accuracy", "none"],
)
def test_what_a_mask_is(tmp_path: Path, pgd: float, bpda: float, masked: bool) -> None:
    keep(tmp_path, run("one", pgd=pgd, bpda=bpda))
    assert load(tmp_path).last("one").masked is masked


def test_the_measurement_on_most_images_counts(tmp_path: Path) -> None:
    """The measurement on most images counts and the start does not."""
    result = run("one", pgd=0.75, steps=(0, 100, 200))
    more = {"clean": 0.75, "pgd": 0.5, "bpda": 0.25, "residual_sd": 0.01, "residual_gain_gradient": 2.0}
    result["measurement"].append({"step": 100, "images": 200, "running": more})
    keep(tmp_path, result)
    evidence = load(tmp_path)
    assert [(found.step, found.clean.total) for found in evidence.runs["one"]] == [(100, 200), (200, 64)]
    assert evidence.last("one").step == 200
    assert evidence.surest("one").step == 100
    assert evidence.longest(depth=49) == 0.2


def test_a_run_measured_at_its_start_is_no_evidence(tmp_path: Path) -> None:
    """A run that was only measured at its start is no evidence."""
    keep(tmp_path, run("one", pgd=0.75, steps=(0,)))
    assert load(tmp_path).runs == {}


def test_every_stored_training_is_in_the_table() -> None:
    """Every stored training is in the table of everything tried."""
    evidence = load()
    assert sorted(found.recipe.name for found in evidence.all()) == sorted(evidence.runs)
    assert len(evidence.runs) >= 16


def test_records_have_all_that_a_row_shows() -> None:
    found = records(load())
    claims = {"1", "4", "6", "7", "B", "C", "experiment 1", "experiment 3", "next check 1", "open question 2"}
    assert claims <= {record["claim"] for record in found}
    for record in found:
        assert record["verdict"] in ("reproduced", "not reproduced", "contradicted", "answered") or record[
            "verdict"
        ].startswith("answered: ")
        assert record["images"]
        assert record["commands"]
        assert "[" in record.get("short", record["ours"]), "bounds"


def test_verdicts_follow_the_figures(tmp_path: Path) -> None:
    """If PGD broke the deep front ends, no claim would be reproduced or contradicted because of them."""
    folder = Path(__file__).parents[2] / "audits" / "trained_masks" / "results"
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for line in content.get("measurement", ()) if isinstance(content, dict) else ():
            line["running"]["pgd"] = line["running"]["bpda"]
        (tmp_path / file.name).write_text(json.dumps(content), encoding="utf-8")
    verdicts = [(record["claim"], record["verdict"]) for record in records(load(tmp_path))]
    assert {verdict for claim, verdict in verdicts if claim in ("1", "experiment 1")} == {"not reproduced"}
    assert ("6", "reproduced") in verdicts, "a rate of 1e-5 leaves no mask"
    assert ("7", "reproduced") in verdicts, "PGD leaves more before the stronger backbone"


@pytest.mark.parametrize(("images", "verdict"), [(400, "reproduced"), (10, "not reproduced")])
def test_the_papers_figures_need_many_images(images: int, verdict: str) -> None:
    def shares(share: float) -> list[float]:
        right = round(share * images)
        return [1.0] * right + [0.0] * (images - right)

    content = {
        "runs": [{"run": "a", "backbone": "vgg-standard"}], "images": images, "version": "standard",
        "clean": shares(0.95), "autoattack": shares(0.908), "adaptive": shares(0.182),
    }  # fmt: skip
    stored = load()
    evidence = Evidence(stored.runs, {**stored.others, "published-other-backbones-standard": content})
    [found] = [record for record in records(evidence) if record["ours"].startswith("the paper's figures")]
    assert found["verdict"] == verdict
