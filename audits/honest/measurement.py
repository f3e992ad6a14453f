"""Audit honest models, and keep what was said of each."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from audits.honest.models import PRECISIONS, THREATS, Honest, build
from audits.honest.pictures import pictures
from pytest_gradmask import GradmaskError, audit, load_dataset
from pytest_gradmask.auditing.research import replaced

_TRAINING_IMAGES = 2000
RESULTS = Path(__file__).parent / "results.json"
Record = Mapping[str, Any]


def measure(honest: Honest, *, samples: int, budget: str) -> dict[str, Any]:
    """Audit one model.

    A model with random weights is right by definition: its labels are its own answers. A trained one gets those of the
    data. Checkpoints are audited on the 20 images of CIFAR-10 that come with this project.

    Returns:
        Plain data: how the model is made, the verdict and the findings. ``error`` is what was raised, if anything was.
    """
    started = time.monotonic()
    trained_on, audited = pictures(_TRAINING_IMAGES, seed=0), pictures(samples, seed=1)
    if honest.training == "checkpoint":
        audited = load_dataset("embedded")
    model = build(honest, trained_on)
    labels = audited.labels
    if honest.training == "random":
        with torch.no_grad():
            labels = model(audited.images.to(PRECISIONS[honest.precision])).argmax(1)
    record: dict[str, Any] = {**asdict(honest), "name": honest.name}
    try:
        found = audit(model, audited.images, labels, threat=THREATS[honest.threat], budget=budget)
    except GradmaskError as error:
        return {**record, "error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}
    return {
        **record,
        "verdict": found.verdict.name,
        "reasons": list(found.reasons),
        "findings": {finding.id: finding.message for finding in found.findings},
        "undermining": [finding.id for finding in found.findings if finding.undermines_attacks],
        "failed": [attack.name for attack in found.attacks if attack.status == "failed"],
        "bypassed": list(found.bypassed),
        "images": found.given,
        "clean": found.clean_accuracy.value,
        "robust": found.gradient_accuracy.value,
        "budget": budget,
        "versions": found.provenance["versions"],
        "seconds": time.monotonic() - started,
    }


def stored(file: Path = RESULTS) -> dict[str, Record]:
    """All records by the name of the model; empty if there is no file."""
    return {record["name"]: record for record in json.loads(file.read_text())} if file.exists() else {}


def store(records: Mapping[str, Record], file: Path = RESULTS) -> None:
    """Write all records in one atomic step, in the order of their names."""
    with replaced(file) as part:
        part.write_text(json.dumps([records[name] for name in sorted(records)], indent=1) + "\n")
