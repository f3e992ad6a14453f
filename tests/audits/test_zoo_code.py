"""What operation-level BPDA breaks alone: measured, stored and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audits.defenses.entry import Entry
from audits.zoo import __main__, page
from audits.zoo.code import alone
from audits.zoo.measurement import store, stored
from pytest_gradmask.loading.datasets import Dataset
from tests.audits.test_zoo_truth import DATA, THREAT, a_record, toy_entry
from tests.toys import TINY, Detach


def test_it_breaks_what_the_reference_breaks_and_names_the_line() -> None:
    found = alone(toy_entry(Detach()), DATA, budget=TINY, threat=THREAT)
    assert found is not None
    assert found["correct"] == len(DATA)
    assert found["both"] >= 0.9 * found["reference"] > 0
    assert found["operations"] >= found["both"]
    assert [line.partition(" at ")[0] for line in found["lines"]] == ["`Tensor.detach`"]
    assert (found["budget"], found["seed"], found["data"]) == ("tiny", 0, "toys.npz")


def test_there_is_nothing_where_no_operation_hides_the_gradient() -> None:
    assert alone(toy_entry(), DATA, budget=TINY, threat=THREAT) is None


def a_code(**changed: Any) -> dict[str, Any]:
    return {
        "budget": "ci", "seed": 0, "data": "d.npz", "correct": 50, "both": 45, "operations": 46, "reference": 50,
        "seconds": {"operations": 3.2, "reference": 1.0}, "lines": ["`torch.round` at a.py:3"],
        "versions": {"torch": "2"}, **changed,
    }  # fmt: skip


def test_the_page_counts_the_masks_on_which_it_reaches_enough() -> None:
    records = {
        "ripple": a_record() | {"code": a_code()},
        "detached": a_record() | {"code": a_code(both=44)},
        "average": a_record((0.1, 0.0, 0.2)) | {"code": a_code(both=1)},
        "jpeg": a_record() | {"code": None},
        "median": a_record(),
    }
    text = page.markdown(records)
    assert "at least 90 % of what the reference breaks on 1 of the 2 that mask" in text
    assert "| ripple | MASKED | 50 | 50 | 46 | 90 % | 3 s | `torch.round` at a.py:3 |" in text
    assert "| average | open | 50 | 50 | 46 | 2 % |" in text
    assert text.count("| 3 s |") == 3
    assert "budget `ci`, seed 0, images of d.npz, with torch 2." in text
    assert "BPDA alone" not in page.markdown({"median": a_record()})


def test_the_command_adds_to_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def measured(entry: Entry, _: Dataset, **settings: Any) -> dict[str, Any]:
        asked.append(f"{entry.name} {settings['budget'].name}")
        return a_code()

    monkeypatch.setattr(__main__, "alone", measured)
    settings = ["--samples", "3", "--output", str(tmp_path)]
    assert __main__.main(["code", "ripple", *settings]) == 2
    assert "not measured yet" in capsys.readouterr().err
    store("ripple", a_record(), tmp_path)
    store("median", a_record() | {"code": None}, tmp_path)
    assert __main__.main(["code", "ripple", "median", "--missing", *settings]) == 0
    assert asked == ["ripple ci"]
    assert stored(tmp_path)["ripple"] == a_record() | {"code": a_code()}
    assert __main__.main(["code", "median", *settings]) == 0
    assert asked[1:] == ["median ci"]
