"""Clean images, adversarial images and their differences, as small PNG files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pytest_gradmask.auditing.bench import Bench
from pytest_gradmask.auditing.scoring import subseed
from pytest_gradmask.report.evidence.reruns import Rerun, done
from pytest_gradmask.threat import ball_of

#: Largest side in pixels. Larger images show every second or third pixel; averaging would hide the difference.
_SIDE = 128


def pictures(
    bench: Bench,
    rerun: Rerun,
    order: Sequence[int],
    numbers: Sequence[int],
    count: int,
    *,
    beside: Rerun | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Clean image, adversarial image and their difference, with the predictions of the defense for the first two.

    Args:
        bench: with the images.
        rerun: of the attack.
        order: indices of attacked images, the preferred ones first. Broken images come before all others.
        numbers: for each image of the bench, its number in the report.
        count: how many to show.
        beside: of another attack, whose images are shown beside these; None or the same rerun for none.
        class_names: of all classes. They are left out if the defense has another number of classes.
    """
    broken = set(done(rerun).broken)
    shown = sorted(dict.fromkeys(order), key=lambda index: index not in broken)[:count]
    scorer = bench.scorer
    if scorer.images.ndim != 4:
        raise RuntimeError(f"inputs of shape {' x '.join(map(str, scorer.images.shape))} are no pictures")
    low, high = scorer.threat.bounds
    clean = scorer.images[shown]
    adversarial = rerun.returned[[rerun.attacked.index(index) for index in shown]]
    with torch.no_grad():
        classes = scorer.oracle(clean[:1]).shape[1]
    names = class_names if len(class_names) == classes else ()
    unnamed = (
        f"{len(class_names)} names of classes are known, and the defense has {classes} classes: they have numbers."
    )
    scorer.oracle.reseed(subseed(scorer.seed, "defense under pictures of evidence"))
    before, after = _predictions(bench, clean, names), _predictions(bench, adversarial, names)
    difference = (adversarial - clean).nan_to_num(0, 0, 0)
    largest = difference.abs().max().item() / (high - low)
    magnification = max(1, math.floor(0.5 / largest)) if largest > 0 else 1
    second = beside if beside is not None and beside is not rerun and len(beside.returned) else None
    others: list[dict[str, Any] | None] = [None] * len(shown)
    if second is not None:
        images = second.returned[[second.attacked.index(index) for index in shown]]
        survives = set(shown) - set(done(second).broken)
        others = [
            {**answer, "png": _png((images[row] - low) / (high - low)), "broken": shown[row] not in survives}
            for row, answer in enumerate(_predictions(bench, images, names))
        ]
    distances = ball_of(scorer.threat).distance(adversarial, clean).tolist()
    return {
        "attack": rerun.name,
        "beside": "" if second is None else second.name,
        "broken": len(broken),
        "attacked": len(rerun.attacked),
        "magnification": magnification,
        "every": _every(clean),
        "channels": clean.shape[1],
        "unnamed": unnamed if class_names and not names else "",
        "images": [
            {
                "image": numbers[index],
                "label": int(scorer.labels[index]),
                "label_name": names[int(scorer.labels[index])] if names else "",
                "clean": before[row],
                "adversarial": after[row],
                "broken": index in broken,
                "other": others[row],
                "distance": distances[row],
                "clean_png": _png((clean[row] - low) / (high - low)),
                "adversarial_png": _png((adversarial[row] - low) / (high - low)),
                "difference_png": _png(0.5 + magnification * difference[row] / (high - low)),
            }
            for row, index in enumerate(shown)
        ],
    }


def _predictions(bench: Bench, images: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The predicted class of each image in one forward, its name, and its probability by a softmax of the logits."""
    with torch.no_grad():
        probabilities = bench.scorer.oracle(images).softmax(1)
    largest, classes = probabilities.max(1)
    return [
        {
            "class": predicted,
            "name": names[predicted] if names else "",
            "probability": round(value, 4) if math.isfinite(value) else None,
        }
        for value, predicted in zip(largest.tolist(), classes.tolist(), strict=True)
    ]


def _every(images: Tensor) -> int:
    return math.ceil(max(images.shape[2:]) / _SIDE)


def _png(image: Tensor) -> str:
    """An image in [0, 1], C x H x W, as a PNG in base64. Shows the first channel if they are neither grey nor RGB."""
    every = _every(image[None])
    image = image if len(image) in (1, 3) else image[:1]
    pixels = (image[:, ::every, ::every].nan_to_num(0, 1, 0).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
