"""``python -m audits.randomized``: docs/randomized.md from audits/randomized/results.

With ``--measure DATA`` it first repeats the measurements, which takes about an hour of one core. With ``--simulate`` it
first repeats the simulation of audits, which takes ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audits.randomized.calibration import AUDITS, error_rates
from audits.randomized.coverage import coverage
from audits.randomized.duel import duel
from audits.randomized.page import write
from audits.zoo import find
from pytest_gradmask import load_dataset, load_model
from pytest_gradmask.auditing.research import replaced, versions

RESULTS = Path(__file__).parent / "results"

#: Their random numbers are drawn for each batch, for each activation, and for each pixel.
DEFENSES = ("resize-and-pad", "activation-pruning", "noise")
#: By name: the members, and the submodule that the attacks bypass.
ENSEMBLES: dict[str, tuple[tuple[str, ...], str]] = {
    "adversarial-pair": (("vgg-adversarial", "resnet-adversarial"), ""),
    "adversarial-and-mild": (("vgg-adversarial", "vgg-mildly-adversarial"), ""),
    "same-backbone": (
        ("resnet-standard-composite", "resnet-standard-composite-b", "resnet-standard-composite-c"),
        "",
    ),
    "different-backbones": (("resnet-standard-composite", "vgg-standard-composite", "vit-standard-composite"), ""),
    "same-backbone-bypassed": (
        ("resnet-standard-composite", "resnet-standard-composite-b", "resnet-standard-composite-c"),
        "front_end",
    ),
    "different-backbones-bypassed": (
        ("resnet-standard-composite", "vgg-standard-composite", "vit-standard-composite"),
        "front_end",
    ),
}


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _store(name: str, record: dict[str, Any], data: str) -> None:
    provenance = {"data": data.rpartition("/")[2], "versions": versions("torch", "torchvision", "timm", "pyautoattack")}
    with replaced(RESULTS / f"{name}.json") as part:
        part.write_text(json.dumps(record | provenance, indent=1) + "\n")


def _measure(data: str, samples: int, names: Sequence[str], seed: int) -> None:
    images = load_dataset(data, samples=samples, seed=seed)
    for name in names:
        if name in ENSEMBLES:
            members, bypass = ENSEMBLES[name]
            models = [load_model(member) for member in members]
            _store(name, duel(name, models, images, bypass=bypass, seed=seed, progress=_say), images.source)
        else:
            (entry,) = find([name])
            _store(name, coverage(entry, images, seed=seed, progress=_say), images.source)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or simulate if an option asks for it, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m audits.randomized", description=__doc__)
    parser.add_argument("names", nargs="*", help="what to measure (default: all)")
    parser.add_argument("--measure", metavar="DATA", help="measure again, on data as of --gradmask-data")
    parser.add_argument("--simulate", action="store_true", help=f"simulate {AUDITS:,} audits of each kind again")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    known = (*DEFENSES, *ENSEMBLES)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"{', '.join(unknown)}: unknown; there are {', '.join(known)}")
    RESULTS.mkdir(exist_ok=True)
    if options.measure:
        _measure(options.measure, options.samples, options.names or known, options.seed)
    if options.simulate:
        with replaced(RESULTS / "calibration.json") as part:
            part.write_text(json.dumps({"cells": list(error_rates())}, indent=1) + "\n")
    write(RESULTS)


if __name__ == "__main__":
    main()
