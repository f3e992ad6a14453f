"""``python -m tests.plugin.timelines``: audit models that come with the package, and record when each event came.

It writes ``timelines.json`` beside this file, which tests of the time left replay. It takes a quarter of an hour.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, audit, load_dataset, load_model
from pytest_gradmask.auditing.events import Event

FILE = Path(__file__).with_suffix(".json")
#: Images for each budget. Those of ``ci`` are few, for want of time.
IMAGES = {"smoke": 20, "ci": 10}
NAMES = ("rounding", "blur", "resnet-standard-composite", "resnet-adversarial", "vgg-adversarial", "vit-adversarial")


class Rounding(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images * 16).round() / 16


def model(name: str) -> nn.Module:
    """A model by name: with a front end, or one that comes with the package."""
    front_ends = {
        "rounding": (Rounding(), "resnet-standard"),
        "blur": (nn.AvgPool2d(3, stride=1, padding=1), "vgg-adversarial"),
    }
    if name not in front_ends:
        return load_model(name).eval()
    front_end, backbone = front_ends[name]
    return nn.Sequential(front_end, load_model(backbone)).eval()


def recorded(name: str, budget: str) -> dict[str, Any]:
    """One audit: its events, each with the seconds since the start, the name of its class, and its fields."""
    data = load_dataset("embedded", samples=IMAGES[budget])
    events: list[tuple[float, str, dict[str, Any]]] = []
    started = time.monotonic()

    def record(event: Event) -> None:
        events.append((round(time.monotonic() - started, 3), type(event).__name__, asdict(event)))

    found = audit(
        Defense(model(name), name=name), data.images, data.labels, budget=budget, device="cpu", progress=record
    )
    end = round(time.monotonic() - started, 3)
    verdict = found.verdict.name
    return {"name": name, "budget": budget, "verdict": verdict, "total": len(data), "end": end, "events": events}


if __name__ == "__main__":
    torch.set_num_threads(1)
    timelines = [recorded(name, budget) for budget in IMAGES for name in NAMES]
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, timelines)) + "\n]\n")
