"""The stored results of the calibration, and the page and picture from them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest

from audits.calibration.__main__ import DOCS, FILE, with_a_gap, without_masking
from audits.calibration.simulation import (
    MASKED,
    NOT_MASKED,
)
from pytest_gradmask.verdict.stats import clopper_pearson
from tests.audits.calibration_toys import SURE, exceeds


def stored() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(FILE.read_text()))


@pytest.mark.longer
def test_stored_rates_are_those_of_the_rules_of_today() -> None:
    fresh = [*with_a_gap(200, sizes=(20,)), *without_masking(200, sizes=(100,), correlations=(0.0,))]
    kept = [*stored()["with_a_gap"], *stored()["without_masking"]]
    keys = ("images", "margin", "survival", "effect", "correlation", "gap", "finders")
    matched = 0
    for row in fresh:
        (same,) = [k for k in kept if all(k[key] == row[key] for key in keys) and k.get("costs") == row.get("costs")]
        for mode in ("exhaustive", "in_turn"):
            for ours, theirs in zip(row[mode], same[mode], strict=True):
                low, high = clopper_pearson(theirs, same["audits"], SURE)
                assert clopper_pearson(ours, row["audits"], SURE)[0] <= high
                assert clopper_pearson(ours, row["audits"], SURE)[1] >= low
        matched += 1
    assert matched == len(fresh) > 50


def test_stored_rates_are_as_promised() -> None:
    null, gaps, early = (stored()[name] for name in ("without_masking", "with_a_gap", "early_stopping"))
    points = stored()["candidate_points"]
    assert all(row["audits"] >= 10_000 for row in (*null, *early))
    sizes, effects = ({row[key] for row in null} for key in ("images", "effect"))
    assert (sizes, effects) == ({20, 100, 500}, {0.0, 0.01, 0.02, 0.05, 0.1})
    fair = [row for row in early if row["placebo_gets"] == "unbroken"]
    for mode in ("exhaustive", "in_turn"):
        # The largest of many rates is above its true value by chance alone.
        assert not any(exceeds(row[mode][MASKED], row["audits"], 0.01) for row in (*null, *fair))
        assert not any(
            exceeds(row[mode][NOT_MASKED], row["audits"], 0.01) for row in gaps if row["gap"] >= row["margin"]
        )
        assert not any(exceeds(row[mode], row["audits"], 0.01) for row in points if row["runs"] == 7)


def test_stored_attempts_together_have_the_error_of_one() -> None:
    rows = stored()["repeated_attempts"]
    assert {(row["gap"] > 0, row["images"]) for row in rows} == set(product((False, True), ("new", "more")))
    for row in rows:
        assert row["users"] >= 10_000
        assert not exceeds(row["counted"][-1], row["users"], 0.01)
        assert exceeds(row["uncounted"][-1], row["users"], 0.01)


def test_stored_rates_show_what_the_old_placebo_did() -> None:
    early, points = stored()["early_stopping"], stored()["candidate_points"]
    small = [row for row in early if row["placebo_gets"] == "mean" and row["broken"] >= 0.5]
    assert all(exceeds(row["exhaustive"][MASKED], row["audits"], 0.01) for row in small if row["correlation"] == 0)
    assert all(
        exceeds(row["exhaustive"], row["audits"], 0.01) for row in points if (row["runs"], row["between"]) == (1, 0.1)
    )


def test_page_in_docs_shows_the_stored_result() -> None:
    pytest.importorskip("matplotlib")
    from audits.calibration.page import markdown

    page = (DOCS / "calibration.md").read_text()
    assert page == markdown(stored())
    assert (DOCS / "figures" / "power.svg").exists()
    changed = stored()
    changed["with_a_gap"][-1]["exhaustive"] = [0, 0, changed["with_a_gap"][-1]["audits"]]
    assert markdown(changed) != page


def test_the_picture_is_drawn_alike_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from audits.calibration.page import draw

    for folder in ("first", "second"):
        draw(stored()["power"], tmp_path / folder)
    assert (tmp_path / "first" / "power.svg").read_bytes() == (tmp_path / "second" / "power.svg").read_bytes()
