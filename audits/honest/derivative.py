"""How far derivatives by autograd are from differences on honest models: `pytest_gradmask.probes.derivative`.

``python -m audits.honest.derivative`` writes ``derivative.json`` beside this file and prints the largest figures.
Models that the file has already are not measured again. For each model: the largest error at a point as a share of the
derivative's size, between float64 and float64, and between the gradient of the model itself and float64; and what the
check finds with four seeds, which has to be nothing.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from audits.honest.architectures import honest_models
from pytest_gradmask import ThreatModel, load_dataset
from pytest_gradmask.auditing.research import (
    DerivativeCheck,
    Oracle,
    Outputs,
    RandomStream,
    points_near,
    wrong_gradient,
)

RESULT = Path(__file__).with_name("derivative.json")
_THREAT, _SEEDS = ThreatModel(8 / 255), 4


def measure(oracle: Oracle, images: torch.Tensor) -> dict[str, Any]:
    """Largest errors, seconds of a check, and the messages of its findings."""
    generator = torch.Generator().manual_seed(0)
    points = points_near(images[:4], _THREAT, generator).to(oracle.dtype)
    check = DerivativeCheck(oracle, points, _THREAT, generator)
    seen = check.see(check.double_subjects()[0], points)
    own, _ = check.own(seen, points)
    started = time.monotonic()
    found = [
        finding.message
        for seed in range(_SEEDS)
        for finding in wrong_gradient(oracle, images[4 * seed :], _THREAT, torch.Generator().manual_seed(seed))
    ]
    return {
        "error": float(f"{seen.comparison.errors().nan_to_num(0).max().item():.1e}"),
        "own": float(f"{own.errors().nan_to_num(0).max().item():.1e}"),
        "seconds": round((time.monotonic() - started) / _SEEDS, 2),
        "findings": found,
    }


def main() -> None:
    """Measure all models and write the result."""
    images = load_dataset("embedded").images
    table: dict[str, dict[str, Any]] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, model in honest_models(images[:64]):
        if name in table:
            continue
        outputs: Outputs = "probabilities" if "probabilities" in name else "logits"
        table[name] = measure(Oracle(model, RandomStream(0, torch.device("cpu")), outputs), images)
        RESULT.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} models, {sum(len(each['findings']) for each in table.values())} findings")
    for figure in ("error", "own", "seconds"):
        largest = sorted(((each[figure], name) for name, each in table.items()), reverse=True)
        print(f"{figure}; largest:", *largest[:4], sep="\n  ")


if __name__ == "__main__":
    main()
