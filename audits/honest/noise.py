"""How well honest gradients foresee the loss: the cosine of `pytest_gradmask.probes.noise` on honest models.

``python -m audits.honest.noise`` writes ``audits/results/noise.json`` and prints the lowest figures. The threshold of
the finding ``gradient-noise`` lies below them. The figure of a model is the mean over 8 images, as in a probe, and the
mean over the three lowest, as a probe may be left with three images.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from audits.honest.models import honest_models
from pytest_gradmask.attacks.evaluate import value_and_grad
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.probes.noise import RADII, smoothed_cosines
from pytest_gradmask.probes.trace import dual_norm
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import ThreatModel

RESULT = Path(__file__).parents[1] / "results" / "noise.json"
_IMAGES, _FEWEST = 8, 3
THREATS = {
    **{f"Linf {eps:g}/255": ThreatModel(eps / 255) for eps in (0.5, 2, 8, 16)},
    **{f"L2 {eps:g}": ThreatModel(eps, "L2") for eps in (0.1, 0.5)},
}


def measure(oracle: Oracle, images: torch.Tensor, threat: ThreatModel) -> dict[str, list[float] | None]:
    """For each radius, mean cosine over all images and over the three lowest; None where rounding hides it."""
    with torch.no_grad():
        labels = oracle(images).argmax(1)
    seen = value_and_grad(oracle, images, labels, logit_margin, 1)
    largest, found = seen.logits.abs().amax(1), {}
    for radius in RADII:
        cosines = smoothed_cosines(
            oracle, images, labels, seen.gradient, dual_norm(seen.gradient, threat), largest, radius, threat,
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        known = cosines[~cosines.isnan()].sort().values
        enough = len(known) >= _FEWEST
        found[f"{radius:g}"] = [round(float(each.mean()), 4) for each in (known, known[:_FEWEST])] if enough else None
    return found


def main() -> None:
    """Measure all models and write the result."""
    data = load_dataset("embedded")
    table: dict[str, dict[str, dict[str, list[float] | None]]] = {}
    for name, model in honest_models(data.images[:64]):
        outputs = "probabilities" if "probabilities" in name else "logits"
        oracle = Oracle(model, RandomStream(0, torch.device("cpu")), outputs)  # type: ignore[arg-type]
        table[name] = {title: measure(oracle, data.images[:_IMAGES], threat) for title, threat in THREATS.items()}
        RESULT.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} models, {len(THREATS)} threat models")
    for radius in (f"{each:g}" for each in RADII):
        cases = sorted(
            (found[radius], name, title)
            for name, by_threat in table.items()
            for title, found in by_threat.items()
            if found[radius] is not None
        )
        print(f"{radius} eps: {len(cases)} cases; lowest:", *cases[:5], sep="\n  ")


if __name__ == "__main__":
    main()
