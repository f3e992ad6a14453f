"""Which share of the score of the embedded adversarial example do attacks reach? The numbers behind the threshold.

    python -m audits.honest.binarization --data npz:cifar10.npz --weights FOLDER

The weak attacks are FGSM at a part of eps, and APGD along a wrong gradient: the backward pass adds a fixed vector in
the middle of the network. Its size is such that the gradient of the logit margin with respect to the images has the
stated cosine to the true one, as a median over the images.

    python -m audits.honest.binarization --table

The table of docs/findings.md, from what is stored: the models that the threshold was chosen with, and apart from them
those that it was then tested on.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from audits.honest import classifiers
from audits.honest.wrong_gradient import gradient, size_for_cosine, wrong_gradient
from pytest_gradmask import PerturbationSet, ThreatModel, apgd, binarization_test, load_dataset, pgd
from pytest_gradmask.auditing.research import CLOSENESS, logit_margin

RESULTS = Path(__file__).parents[1] / "results" / "honest" / "binarization.json"
THREATS = {"Linf 2/255": ThreatModel(2 / 255), "Linf 8/255": ThreatModel(8 / 255), "L2 0.5": ThreatModel(0.5, "L2")}
_COSINES = (0.5, 0.7)
#: The models that the threshold was chosen with. All others test it.
CHOSEN_WITH = (
    *("resnet-standard", "resnet-adversarial", "vgg-standard", "vgg-adversarial", "vit-standard", "vit-adversarial"),
    *("cifar10-resnet20", "mobilenet_v3_small"),
)
Shares = dict[str, list[float]]


def shares(
    model: nn.Module,
    middle: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    sizes: dict[float, float],
) -> Shares:
    """For each attack, the share of the score of the embedded example that it reaches on each image."""
    reached: Shares = defaultdict(list)

    def attack(
        model_: nn.Module, image: Tensor, label: Tensor, *, threat: PerturbationSet, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            clean = float(logit_margin(model_(image), label))

        def record(name: str, x_adv: Tensor) -> Tensor:
            # The logit margin is linear in the score: 0 at a share of CLOSENESS, and ``clean`` at a share of 0.
            with torch.no_grad():
                reached[name].append(CLOSENESS * (1 - float(logit_margin(model_(x_adv), label)) / clean))
            return x_adv

        def best(steps: int) -> Tensor:
            return apgd(model_, image, label, threat=threat, steps=steps, generator=generator, stop_early=False)

        step = threat.eps * threat.step(gradient(model_, image, label))
        for part in (0.3, 0.5, 1.0):
            record(f"FGSM at {part} eps", threat.project(image + part * step, image))
        record("PGD-20", pgd(model_, image, label, threat=threat, steps=20, generator=generator))
        record("APGD-20", best(20))
        for cosine, size in sizes.items():
            with wrong_gradient(middle, size):
                x_adv = best(50)
            record(f"APGD-50, cosine {cosine}", x_adv)
        return record("APGD-50", best(50))

    tested = binarization_test(attack, model, images, labels, threat=threat, generator=torch.Generator().manual_seed(0))
    reached["passed"] = [tested.passed, tested.tested, tested.trivial, tested.unseparable]
    return {name: [round(value, 3) for value in values] for name, values in reached.items()}


def measure(name: str, data: str, weights: Path | None, count: int) -> dict[str, Shares]:
    """The shares on one model, for each threat model."""
    model = classifiers.build(name, weights)
    model.requires_grad_(False)
    batch = load_dataset(data, samples=max(40, 2 * count))
    with torch.no_grad():
        labels = model(batch.images).argmax(1)
    right = labels == batch.labels if name not in classifiers.RANDOM else torch.ones_like(labels, dtype=torch.bool)
    images, labels = batch.images[right][:count], labels[right][:count]
    middle = classifiers.middle(model)
    sizes = {cosine: size_for_cosine(model, middle, images, labels, cosine) for cosine in _COSINES}
    return {threat: shares(model, middle, images, labels, THREATS[threat], sizes) for threat in THREATS}


def table(stored: Mapping[str, Mapping[str, Shares]], names: Collection[str]) -> list[str]:
    """For each attack, in Markdown: smallest, median and largest share, and the images at the threshold or above."""
    reached: Shares = defaultdict(list)
    for name in names:
        for found in stored[name].values():
            for attack in found.keys() - {"passed"}:
                reached[attack] += found[attack]
    return [
        f"| {attack} | {min(all_):.0%} | {median(all_):.0%} | {max(all_):.0%} | "
        f"{sum(share >= CLOSENESS for share in all_)} of {len(all_)} |"
        for attack, all_ in sorted(reached.items())
    ]


def print_tables() -> None:
    """Print the table of the models that the threshold was chosen with, and that of the others."""
    stored = json.loads(RESULTS.read_text())
    trained = [name for name in stored if name not in classifiers.RANDOM]
    for title, names in (
        ("chosen with", [name for name in stored if name in CHOSEN_WITH]),
        ("held out, trained", [name for name in trained if name not in CHOSEN_WITH]),
        ("held out, random weights", [name for name in stored if name not in {*CHOSEN_WITH, *trained}]),
    ):
        print(f"{title}: {', '.join(names)}", *table(stored, names), sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of what is stored, and measure nothing")
    parser.add_argument("--data", default="embedded", help="CIFAR-10, such as npz:FILE (default: %(default)s)")
    parser.add_argument(
        "--weights", type=Path, help="folder of cifar10-resnetN.safetensors; without it, they are left out"
    )
    parser.add_argument("--images", type=int, default=8, help="images of each model")
    parser.add_argument("--models", nargs="*", help="names; by default all")
    options = parser.parse_args(arguments)
    if options.table:
        print_tables()
        return
    names = options.models or [
        *classifiers.FIXTURES,
        *classifiers.RANDOM,
        *(classifiers.CIFAR if options.weights else ()),
    ]
    for name in names:
        record = measure(name, options.data, options.weights, options.images)
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted({**stored, name: record}.items())), indent=1) + "\n")
        for threat, found in record.items():
            print(name, threat, *(f"{key} {min(some)} to {max(some)}," for key, some in found.items()), flush=True)


if __name__ == "__main__":
    main()
