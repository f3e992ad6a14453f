"""The stored results as figures with bounds: nothing here is copied by hand, and nothing runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits.markdown import share
from audits.trained_masks.package import Proportion, accuracy_bounds, clopper_pearson
from audits.trained_masks.recipes import Recipe
from audits.trained_masks.results import RESULTS

CONFIDENCE = 0.99  # of each bound, as everywhere on the page


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One measurement of one run, with the running statistics of batch norm.

    Attributes:
        recipe: what was trained.
        step, total: steps taken, and those of the whole training.
        clean, pgd, bpda: accuracies without an attack, under PGD-10 and under BPDA-10, at 8/255 Linf.
        residual_sd: of what the front end changes, in input units.
        gain: how many times as long the residual's Jacobian makes the backbone's gradient of the loss.
        test: the file of the images.
        versions: of what it was measured with.
    """

    recipe: Recipe
    step: int
    total: int
    clean: Proportion
    pgd: Proportion
    bpda: Proportion
    residual_sd: float
    gain: float
    test: str
    versions: Mapping[str, str]

    @property
    def masked(self) -> bool:
        """PGD leaves more than BPDA does, and at least half of the clean accuracy. The bounds do not overlap."""
        return self.pgd.low > self.bpda.high and self.pgd.count >= self.clean.count / 2

    @property
    def hidden(self) -> float:
        """How much of what BPDA breaks PGD does not break: 0 without a mask, 1 if it is complete."""
        return (self.pgd.value - self.bpda.value) / (self.clean.value - self.bpda.value)

    @property
    def front_end(self) -> str:
        """Its architecture, depth and width in words."""
        recipe = self.recipe
        frozen = "fixed random, " if recipe.trained == "last" else ""
        return frozen + front_end_name(recipe.architecture, recipe.depth, recipe.width)

    @property
    def name(self) -> str:
        """What was trained, and for how long."""
        rate = _rate(self.recipe.learning_rate)
        return f"{self.front_end} before `{self.recipe.backbone}`, {rate}, {self.step} steps"

    @property
    def training(self) -> str:
        """Optimizer, rate and what else is not the default, in words."""
        recipe = self.recipe
        kind = f"{'SGD' if recipe.optimizer == 'sgd' else 'AdamW'} {_rate(recipe.learning_rate)}"
        summed = ", summed loss" if recipe.loss == "sum" else ""
        return f"{kind}{summed}, batches of {recipe.batch_size}, seed {recipe.seed}"

    def __str__(self) -> str:
        return f"{self.name}: PGD-10 {bounded(self.pgd)}, BPDA-10 {bounded(self.bpda)}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All stored results.

    Attributes:
        runs: measurements of each training after its start, by name, in the order of steps; of several measurements
            at one step, the one on the most images.
        others: what other measurements left, by the name of their file.
    """

    runs: Mapping[str, Sequence[Measured]]
    others: Mapping[str, Any]

    def last(self, name: str) -> Measured:
        """A training where it ended."""
        return self.runs[name][-1]

    def surest(self, name: str) -> Measured:
        """The measurement of a training on the most images; of several, the latest."""
        return max(self.runs[name], key=lambda found: (found.clean.total, found.step))

    def all(self) -> list[Measured]:
        """The last measurement of every training, shallow ones first."""
        found = [self.last(name) for name in self.runs]
        return sorted(found, key=lambda run: (run.recipe.architecture, run.recipe.depth, run.recipe.name))

    def longest(self, *, depth: int) -> float:
        """The largest share of its training that a DnCNN of this depth has had."""
        runs = [self.last(name) for name in self.runs]
        return max(
            run.step / run.total for run in runs if (run.recipe.architecture, run.recipe.depth) == ("dncnn", depth)
        )


def front_end_name(architecture: str, depth: int, width: int) -> str:
    """An architecture, its convolutions along the longest path and their channels, in words."""
    names = {"dncnn": "", "unet": "U-Net, ", "invertible": "invertible, "}
    return f"{names[architecture]}{depth} x {width}"


def bounded(found: Proportion) -> str:
    """A proportion with its bounds, as the page shows it."""
    return share((found.value, found.low, found.high))


def load(folder: Path = RESULTS) -> Evidence:
    """Read a folder of results."""
    runs: dict[str, Sequence[Measured]] = {}
    others = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "measurement" in content:
            runs[file.stem] = _measurements(content)
        else:
            others[file.stem] = content
    return Evidence({name: found for name, found in runs.items() if found}, others)


def share_of(value: float, images: int) -> Proportion:
    """The exact bounds of a share that was stored in four digits: it is a count of images."""
    count = round(value * images)
    if abs(value * images - count) > 0.05:
        raise ValueError(f"{value} is no share of {images} images; was it a mean? Then use `mean_of`")
    return Proportion(count, images, *clopper_pearson(count, images, CONFIDENCE))


def mean_of(value: float, images: int) -> Proportion:
    """The bounds of a mean over images, each of which counts by a share, such as that of the members that are right."""
    return mean_of_all([value] * images)


def mean_of_all(shares: Sequence[float]) -> Proportion:
    """The same, of the share of each image."""
    return Proportion(sum(shares), len(shares), *accuracy_bounds(shares, CONFIDENCE))


def _measurements(content: Mapping[str, Any]) -> list[Measured]:
    surest: dict[int, Mapping[str, Any]] = {}
    for line in content["measurement"]:
        if line["step"] > 0 and line["images"] >= surest.get(line["step"], line)["images"]:
            surest[line["step"]] = line
    return [
        Measured(
            recipe=Recipe(**content["recipe"]),
            step=step,
            total=content["total"],
            **{key: share_of(line["running"][key], line["images"]) for key in ("clean", "pgd", "bpda")},
            residual_sd=line["running"]["residual_sd"],
            gain=line["running"]["residual_gain_gradient"],
            test=content["data"]["test"],
            versions=content["versions"],
        )
        for step, line in sorted(surest.items())
    ]


def _rate(value: float) -> str:
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
