"""Images, what an attack made of them, and the difference, as small PNG files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from pytest_gradmask.auditing.bench import Bench
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.report.evidence.curves import Rerun, done

#: Pixels of a side. Of a larger image every second pixel is shown, or every third: averages would hide the difference.
_SIDE = 128


def pictures(bench: Bench, rerun: Rerun, order: Sequence[int], given: Sequence[int], count: int) -> dict[str, Any]:
    """Clean image, adversarial image and their difference, with what the defense calls the first two.

    Args:
        bench: with the images.
        rerun: of the attack.
        order: of images that it was given, those to prefer first. What it has broken comes before what it has not.
        given: for each image of the bench, its number in the report.
        count: how many to show.
    """
    broken = set(done(rerun).broken)
    shown = sorted(dict.fromkeys(order), key=lambda index: index not in broken)[:count]
    scorer = bench.scorer
    low, high = scorer.threat.bounds
    clean = scorer.images[shown]
    adversarial = rerun.returned[[rerun.given.index(index) for index in shown]]
    scorer.oracle.reseed(subseed(scorer.seed, "defense under pictures of evidence"))
    before, after = _answers(bench, clean), _answers(bench, adversarial)
    difference = (adversarial - clean).nan_to_num(0, 0, 0)
    largest = difference.abs().max().item() / (high - low)
    magnification = max(1, math.floor(0.5 / largest)) if largest > 0 else 1
    distances = scorer.threat.distance(adversarial, clean).tolist()
    return {
        "attack": rerun.name,
        "broken": len(broken),
        "attacked": len(rerun.given),
        "magnification": magnification,
        "every": _every(clean),
        "channels": clean.shape[1],
        "images": [
            {
                "image": given[index],
                "label": int(scorer.labels[index]),
                "clean": before[place],
                "adversarial": after[place],
                "broken": index in broken,
                "distance": distances[place],
                "clean_png": _png((clean[place] - low) / (high - low)),
                "adversarial_png": _png((adversarial[place] - low) / (high - low)),
                "difference_png": _png(0.5 + magnification * difference[place] / (high - low)),
            }
            for place, index in enumerate(shown)
        ],
    }


def _answers(bench: Bench, images: torch.Tensor) -> list[dict[str, Any]]:
    """One forward: the class, and its probability by a softmax of the logits."""
    with torch.no_grad():
        shares = bench.scorer.oracle(images).softmax(1)
    found, classes = shares.max(1)
    return [
        {"class": answer, "probability": round(share, 4) if math.isfinite(share) else None}
        for share, answer in zip(found.tolist(), classes.tolist(), strict=True)
    ]


def _every(images: torch.Tensor) -> int:
    return math.ceil(max(images.shape[2:]) / _SIDE)


def _png(image: torch.Tensor) -> str:
    """An image in [0, 1], C x H x W, in base64. Of channels that are neither grey nor RGB, the first is shown."""
    every = _every(image[None])
    image = image if len(image) in (1, 3) else image[:1]
    pixels = (image[:, ::every, ::every].nan_to_num(0, 1, 0).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
