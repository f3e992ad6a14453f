"""Measure a known defense: its truth, our audit of it, the unit test of gradient attacks on it, AutoAttack's flags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from audits.defenses.entry import Entry
from audits.zoo.flags import autoattack_flags
from audits.zoo.truth import Truth, measure_truth
from pytest_gradmask import ThreatModel, audit, load_model
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.binarization.run import BinarizationTest, binarization_test
from pytest_gradmask.defense import as_defense
from pytest_gradmask.errors import DataError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.report.json import to_json
from pytest_gradmask.verdict.audit import Audit

#: One file a defense, so that many can be measured at once.
RESULTS = Path(__file__).parent / "results"
_TESTED = 8  # images of the unit test

Record = Mapping[str, Any]
#: What `measure` says while it works.
Progress = Callable[[object], None]


def measure(
    entry: Entry,
    data: Dataset,
    *,
    budget: Budget,
    margin: float,
    threat: ThreatModel | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Measure one defense.

    The audit is told nothing about the defense, and runs every attack on every image. The truth comes from its gradient
    attacks and the defense's reference.

    Args:
        entry: the defense.
        data: with the labels of the data; the entry's own are derived.
        budget: of the audit.
        margin: the gap above which a defense masks, a share of images in (0, 1).
        threat: by default the audit's.
        device: torch device.
        seed: of every random choice.
        progress: called with a line of text before each step.

    Returns:
        Plain data: ``truth``, ``audit``, ``binarization_test`` and ``flags``, and what they were measured on.

    Raises:
        DataError: the truth could not be measured.
        InputError, DefenseError: what `audit` raises.
    """
    threat = threat or ThreatModel()
    defense = as_defense(entry.build(load_model))
    labels = entry.labels(data.labels)
    found = audit(
        defense, data.images, labels, threat=threat, budget=budget, margin=margin, device=device, seed=seed,
        exhaustive=True, progress=progress,
    )  # fmt: skip
    progress("reference")
    truth = measure_truth(
        entry, defense, data.images, labels, found, threat=threat, pilot_samples=budget.pilot_samples,
        device=device, seed=seed,
    )  # fmt: skip
    progress("unit test of apgd-ce")
    correct = sorted(found.survivors([]))[:_TESTED]
    attack = partial(autoattack.apgd_ce, steps=budget.apgd_steps, eot=budget.eot if entry.randomized else 1)
    tested = binarization_test(
        attack, defense, data.images[correct], labels[correct], threat=threat,
        generator=torch.Generator().manual_seed(subseed(seed, "unit test")),
    )  # fmt: skip
    progress("AutoAttack's checks")
    flags = autoattack_flags(
        defense, data.images, labels, found, threat=threat, queries=budget.square_queries, seed=seed
    )
    return {
        "truth": asdict(truth),
        "audit": _figures(found),
        "binarization_test": _counts(tested),
        "flags": flags,
        "data": data.source.rpartition("/")[2],
        "provenance": dict(found.provenance),
    }


def repeat(
    entry: Entry,
    data: Dataset,
    *,
    budget: Budget,
    margin: float,
    seed: int,
    exhaustive: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Audit a defense once more, with another seed; arguments as for `measure`.

    Args:
        exhaustive: whether every attack runs on every image, instead of until the verdict is certain.
    """
    found = audit(
        entry.build(load_model), data.images, entry.labels(data.labels), budget=budget, margin=margin, device=device,
        seed=seed, exhaustive=exhaustive,
    )  # fmt: skip
    gap = None if found.gap is None else found.gap.estimate
    return {
        "seed": seed, "exhaustive": exhaustive, "verdict": found.verdict.name, "gap": gap, "images": found.total,
        "budget": budget.name, "margin": margin,
    }  # fmt: skip


def _figures(found: Audit) -> dict[str, Any]:
    """The audit as JSON, without what the record says once for all, and with the families' accuracies."""
    content = to_json(found)
    for left_out in ("test", "defense", "provenance", "per_image"):
        del content[left_out]
    for finding in content["findings"]:
        del finding["link"]
    return content


def _counts(tested: BinarizationTest) -> dict[str, int]:
    return {"passed": tested.passed, "tested": tested.tested}


def store(name: str, record: Record, folder: Path = RESULTS) -> None:
    """Write what was measured of a defense, in one atomic step, in place of an older record."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    with replaced(file) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def stored(folder: Path = RESULTS) -> dict[str, Record]:
    """All that was measured, by the name of the defense; empty if there is no such folder.

    Raises:
        DataError: a file cannot be read.
    """
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def stored_record(name: str, folder: Path = RESULTS) -> Record | None:
    """What was measured of one defense; None if nothing was.

    Raises:
        DataError: the file cannot be read.
    """
    file = folder / f"{name}.json"
    return _read(file) if file.exists() else None


def stored_truth(name: str, folder: Path = RESULTS) -> Truth | None:
    """The truth of a defense; None if it was not measured.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    record = stored_record(name, folder)
    try:
        return None if record is None else Truth(**record["truth"])
    except (KeyError, TypeError) as error:
        raise DataError(f"record {folder / f'{name}.json'}: holds something else ({error}); measure again") from error


def _read(file: Path) -> Record:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"record {file}: cannot be read ({error}); measure again") from error
    if not isinstance(content, dict):
        raise DataError(f"record {file}: holds no object; measure again")
    return content
