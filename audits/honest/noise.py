"""How well honest gradients foresee the loss: the cosine of `pytest_gradmask.probes.noise` on honest models.

``python -m audits.honest.noise`` writes ``noise.json`` beside this file and prints the lowest figures; models that the
file has already are not measured again. The threshold of the finding ``gradient-noise`` lies below them. As in a probe,
only the images are asked that a short PGD does not break, where those are three or more; most honest models are broken
at once where eps is large.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from audits.honest.architectures import honest_models
from pytest_gradmask import ThreatModel, load_dataset
from pytest_gradmask.auditing.research import (
    MAX_IMAGES,
    RADII,
    Oracle,
    Outputs,
    RandomStream,
    known_cosines,
    trace_pgd,
)

RESULT = Path(__file__).with_name("noise.json")
THREATS = {
    **{f"Linf {eps:g}/255": ThreatModel(eps / 255) for eps in (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8)},
    **{f"L2 {eps:g}": ThreatModel(eps, "L2") for eps in (0.01, 0.05, 0.1, 0.5)},
}


def measure(oracle: Oracle, images: torch.Tensor, threat: ThreatModel) -> dict[str, float]:
    """Mean cosine at each radius at which it is known; empty where fewer than three images are left."""
    with torch.no_grad():
        labels = oracle(images).argmax(1)
    trace = trace_pgd(oracle, images, labels, threat, torch.Generator().manual_seed(0))
    found = known_cosines(oracle, trace, torch.Generator().manual_seed(0))
    return {f"{radius:g}": round(cosine, 4) for radius, cosine in found.items()}


def main() -> None:
    """Measure all models and write the result."""
    data = load_dataset("embedded")
    table: dict[str, dict[str, dict[str, float]]] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, model in honest_models(data.images[:64]):
        if name in table or "re-entrant" in name:  # checkpoints of that kind refuse autograd.grad
            continue
        outputs: Outputs = "probabilities" if "probabilities" in name else "logits"
        oracle = Oracle(model, RandomStream(0, torch.device("cpu")), outputs)
        table[name] = {title: measure(oracle, data.images[:MAX_IMAGES], threat) for title, threat in THREATS.items()}
        RESULT.write_text(json.dumps(table, indent=1) + "\n")
    cases = [(found, name, title) for name, by in table.items() for title, found in by.items() if found]
    print(f"{len(table)} models, {len(THREATS)} threat models, {len(cases)} cases with images left")
    for radius in (f"{each:g}" for each in RADII):
        known = sorted((found[radius], name, title) for found, name, title in cases if radius in found)
        print(f"{radius} eps: {len(known)} cases; lowest:", *known[:5], sep="\n  ")
    best = sorted((max(found.values()), name, title) for found, name, title in cases)
    print("best of all radii; lowest:", *best[:8], sep="\n  ")


if __name__ == "__main__":
    main()
