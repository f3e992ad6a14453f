"""Measure a known defense: the truth about it, our audit, the binarization test of an attack, AutoAttack's flags."""

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
from audits.zoo.truth import AuditedDefense, Truth, measure_truth
from pytest_gradmask import (
    Audit,
    BinarizationTest,
    Budget,
    DataError,
    Dataset,
    DefenseError,
    ThreatModel,
    audit,
    binarization_test,
    load_model,
)
from pytest_gradmask.auditing.research import as_defense, autoattack, replaced, subseed
from pytest_gradmask.report.json import to_json

#: One file a defense, so that many can be measured at once.
RESULTS = Path(__file__).parent / "results"
#: Images and margin of stored repeats, by budget: the page counts their verdicts together.
REPEATED = {"smoke": (60, 0.10), "ci": (200, 0.05)}
_TESTED = 8  # images of the binarization test

Record = Mapping[str, Any]
#: Called with a line of text or an event before each step of `measure`.
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

    The audit gets no information about the defense, and runs every attack on every image. The truth comes from its
    gradient attacks and the defense's reference.

    Args:
        entry: the defense.
        data: images with the labels of the data. The labels of the defense are derived from them.
        budget: of the audit.
        margin: the masking gap above which a defense masks, a share of images in (0, 1).
        threat: by default the audit's.
        device: torch device.
        seed: of every random choice.
        progress: called with a line of text before each step.

    Returns:
        Plain data: ``truth``, ``audit``, ``binarization_test`` and ``flags``, with data and versions.

    Raises:
        DataError: the truth could not be measured.
        InputError, DefenseError: as `audit` raises them.
    """
    threat = threat or ThreatModel()
    defense, untouched = (as_defense(entry.build(load_model)) for _ in range(2))  # the audit changes some of them
    labels = entry.labels(data.labels)
    found = audit(
        defense, data.images, labels, threat=threat, budget=budget, margin=margin, device=device, seed=seed,
        exhaustive=True, progress=progress,
    )  # fmt: skip
    progress("reference")
    case = AuditedDefense(
        entry=entry, defense=untouched, images=data.images, labels=labels, audit=found, threat=threat,
        pilot_samples=budget.pilot_samples, device=device, seed=seed,
    )  # fmt: skip
    truth = measure_truth(case)
    progress("binarization test of apgd-ce")
    correct = sorted(found.survivors([]))[:_TESTED]
    attack = partial(autoattack.apgd_ce, steps=budget.apgd_steps, eot=budget.eot if entry.randomized else 1)
    try:
        tested = binarization_test(
            attack, defense, data.images[correct], labels[correct], threat=threat,
            generator=torch.Generator().manual_seed(subseed(seed, "unit test")),
        )  # fmt: skip
    except DefenseError as error:  # one that answers from another last layer under autograd cannot be changed for it
        progress(f"no binarization test: {error}")
        tested = BinarizationTest(outcomes=(), confidence=found.confidence)
    progress("AutoAttack's checks")
    flags = autoattack_flags(case, queries=budget.square_queries)
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
    """Audit a defense again with another seed. Arguments are those of `measure`.

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
        "budget": budget.name, "margin": margin, "seconds": round(found.seconds, 1),
        "findings": [finding.id for finding in found.findings], "versions": found.provenance["versions"],
    }  # fmt: skip


def _figures(found: Audit) -> dict[str, Any]:
    """The audit as JSON, without the fields that the record holds elsewhere."""
    content = to_json(found)
    for left_out in ("test", "defense", "provenance", "per_image"):
        del content[left_out]
    for finding in content["findings"]:
        del finding["link"]
    return content


def _counts(tested: BinarizationTest) -> dict[str, int]:
    return {"passed": tested.passed, "tested": tested.tested}


def store(name: str, record: Record, folder: Path = RESULTS) -> None:
    """Write the record of a defense in one atomic step. It replaces an older record."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    with replaced(file) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")


def stored(folder: Path = RESULTS) -> dict[str, Record]:
    """All records by the name of the defense. Empty if there is no such folder.

    Raises:
        DataError: a file cannot be read.
    """
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def stored_record(name: str, folder: Path = RESULTS) -> Record | None:
    """The record of one defense, or None if there is none.

    Raises:
        DataError: the file cannot be read.
    """
    file = folder / f"{name}.json"
    return _read(file) if file.exists() else None


def stored_truth(name: str, folder: Path = RESULTS) -> Truth | None:
    """The truth about a defense, or None if it was not measured.

    Raises:
        DataError: the file cannot be read, or is not a record.
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
