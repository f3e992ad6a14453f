"""Train front ends as the paper does, and look whether they mask.

``python -m audits.trained_masks train NAME --data imagefolder:DIR --test npz:FILE --out DIR`` trains a recipe of
`recipes.toml`, or goes on with it; ``measure`` measures a run on more images; ``stronger`` attacks it for
longer; ``collect`` adds its results to those beside this file; ``roughness`` follows that of every snapshot in the
folder; ``transfer`` attacks several runs through each other and their ensemble; ``untrained`` measures front ends with
random residuals of several sizes, ``others`` front ends of other architectures; ``table`` prints all results.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from audits.trained_masks.diagnostics import diagnosed, under_stronger_attacks
from audits.trained_masks.ensembles import MEASURED, attacked_as_published
from audits.trained_masks.package import load_checkpoint, load_dataset
from audits.trained_masks.recipes import load_recipes
from audits.trained_masks.results import Log, collect, keep, stored_result, table, versions
from audits.trained_masks.roughness import at_start, of_snapshots
from audits.trained_masks.storage import load_run, save_run, stored_recipe
from audits.trained_masks.training import Run, Seen, new_front_end
from audits.trained_masks.transfer import transfer
from audits.trained_masks.untrained import other_untrained, untrained


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m audits.trained_masks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("train", "measure", "stronger", "collect"):
        own = commands.add_parser(command)
        own.add_argument("name", help="of the recipe")
        own.add_argument("--out", type=Path, required=True, help="folder of the run's file and log")
        if command == "train":
            own.add_argument("--data", required=True, help="training images, as --gradmask-data takes them")
            own.add_argument("--steps", type=int, help="stop after this many steps in all")
            own.add_argument("--every", type=int, default=200, help="steps between measurements")
            own.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; resumable")
        if command in ("train", "measure", "stronger"):
            own.add_argument("--test", required=True, help="images to measure on")
            own.add_argument("--images", type=int, default=64, help="how many of those")
    own = commands.add_parser("roughness")
    own.add_argument("--out", type=Path, required=True, help="folder of the runs")
    own.add_argument("--test", required=True, help="images to measure on")
    own.add_argument("--images", type=int, default=16, help="how many of those")
    own = commands.add_parser("transfer")
    own.add_argument("name", help="of the result")
    own.add_argument("runs", nargs="+", help="names of recipes, two or more")
    own.add_argument("--out", type=Path, required=True, help="folder of the runs")
    own.add_argument("--test", required=True, help="images to measure on")
    own.add_argument("--images", type=int, default=64, help="how many of those")
    own = commands.add_parser("published", help="AutoAttack as published on a randomized ensemble; goes on")
    own.add_argument("name", help="of the result")
    own.add_argument("runs", nargs="+", help="names of recipes, two or more")
    own.add_argument("--version", choices=("standard", "rand"), default="standard", help="of AutoAttack")
    own.add_argument("--out", type=Path, required=True, help="folder of the runs")
    own.add_argument("--test", required=True, help="images to measure on")
    own.add_argument("--images", type=int, default=200, help="how many of those")
    for command in ("untrained", "others"):
        own = commands.add_parser(command)
        own.add_argument("--data", required=True, help="images whose statistics batch norm takes; 256 of them")
        own.add_argument("--test", required=True, help="images to measure on")
        own.add_argument("--images", type=int, default=64, help="how many of those")
    commands.add_parser("table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.command == "table":
        print(table())
    else:
        actions = {
            "train": _train,
            "measure": _measure,
            "stronger": _stronger,
            "collect": _collect,
            "roughness": _roughness,
            "transfer": _transfer,
            "published": _published,
            "untrained": _untrained,
            "others": _others,
        }
        actions[options.command](options)


def _train(options: argparse.Namespace) -> None:
    recipe = load_recipes()[options.name]
    file = options.out / f"{recipe.name}.safetensors"
    if file.exists() and stored_recipe(file) != recipe:
        raise SystemExit(f"{file} was trained by another recipe of that name; take another name or folder")
    backbone = load_checkpoint(recipe.backbone)
    run = Run(recipe, backbone, load_dataset(options.data, split="train"), file)
    test = load_dataset(options.test, samples=options.images)
    log = Log(options.out / f"{recipe.name}.jsonl", options)
    log.start(recipe, run.step, run.total)
    stopped = [False]
    signal.signal(signal.SIGTERM, lambda _signal, _frame: _set(stopped, _frame))
    began = saved = time.monotonic()
    seen: list[Seen] = []

    def measure() -> None:
        log.measured(run.step, diagnosed(run.front_end, backbone, test))
        snapshot = options.out / "snapshots" / f"{recipe.name}-{run.step:05d}.safetensors"
        save_run(snapshot, run.front_end, None, run.step, recipe)

    def proceed(now: Seen) -> bool:
        nonlocal saved
        seen.append(now)
        if now.step % 100 == 0 or now.step in (25, 50):
            log.trained(seen)
            seen.clear()
        if now.step % options.every == 0 or now.step in (options.steps, run.total):
            measure()
        if time.monotonic() - saved > 120:
            run.save()
            saved = time.monotonic()
        return not stopped[0] and time.monotonic() - began < 60 * options.minutes

    run.go_on(options.steps or run.total, proceed)
    run.save()


def _set(stopped: list[bool], _frame: FrameType | None) -> None:
    stopped[0] = True


def _measure(options: argparse.Namespace) -> None:
    recipe = load_recipes()[options.name]
    front_end = new_front_end(recipe).eval()
    step = load_run(options.out / f"{recipe.name}.safetensors", front_end)
    test = load_dataset(options.test, samples=options.images)
    figures = diagnosed(front_end, load_checkpoint(recipe.backbone), test)
    Log(options.out / f"{recipe.name}.jsonl", options).measured(step, figures)


def _stronger(options: argparse.Namespace) -> None:
    recipe = load_recipes()[options.name]
    front_end = new_front_end(recipe).eval().requires_grad_(False)
    step = load_run(options.out / f"{recipe.name}.safetensors", front_end)
    backbone = load_checkpoint(recipe.backbone).requires_grad_(False)
    test = load_dataset(options.test, samples=options.images)
    figures = under_stronger_attacks(front_end, backbone, test)
    run = {"run": recipe.name, "step": step, "images": len(test)}
    print(keep(f"{recipe.name}-stronger", {**run, **_provenance(options), **figures}))


def _roughness(options: argparse.Namespace) -> None:
    images = load_dataset(options.test, samples=options.images).images
    rows = of_snapshots(sorted((options.out / "snapshots").glob("*.safetensors")), images)
    sizes = [(depth, width) for depth in (9, 17, 25, 33, 49) for width in (16, 64)]
    start = [row for normalized in (False, True) for row in at_start(images, sizes, normalized=normalized)]
    print(keep("roughness", {"images": len(images), "at_start": start, "snapshots": rows}))


def _transfer(options: argparse.Namespace) -> None:
    front_ends, backbones, runs = _members(options)
    figures = transfer(front_ends, backbones, load_dataset(options.test, samples=options.images))
    print(keep(f"transfer-{options.name}", {"runs": runs, **_provenance(options), **figures}))


def _published(options: argparse.Namespace) -> None:
    front_ends, backbones, runs = _members(options)
    name = f"published-{options.name}-{options.version}"
    data = load_dataset(options.test, samples=options.images)
    known = {"runs": runs, "wanted": len(data), **_provenance(options)}
    before = stored_result(name)
    if before and {key: before[key] for key in known} != known:
        raise SystemExit(f"{name}: the stored result is of other members, images or versions; take another name")
    parts = list(front_ends.values()), list(backbones.values())
    for found in attacked_as_published(*parts, data, before, version=options.version):
        keep(name, {**known, **found})
        shares = {key: f"{sum(found[key]) / found['images']:.1%}" for key in MEASURED}
        print(f"{found['images']} of {len(data)} images: {shares}", flush=True)


def _members(options: argparse.Namespace) -> tuple[dict[str, nn.Module], dict[str, nn.Module], list[dict[str, Any]]]:
    """Front ends and backbones by the name of the run, and what they are."""
    front_ends: dict[str, nn.Module] = {}
    backbones, runs = {}, []
    for name in options.runs:
        recipe = load_recipes()[name]
        front_ends[name] = (front_end := new_front_end(recipe).eval().requires_grad_(False))
        step = load_run(options.out / f"{name}.safetensors", front_end)
        backbones[name] = load_checkpoint(recipe.backbone).requires_grad_(False)
        runs.append({"run": name, "step": step, "backbone": recipe.backbone})
    return front_ends, backbones, runs


def _provenance(options: argparse.Namespace) -> dict[str, Any]:
    return {"data": {"test": Path(options.test).name}, "seed": 0, "versions": versions()}


def _untrained(options: argparse.Namespace) -> None:
    calibration = load_dataset(options.data, split="train", samples=256)
    test = load_dataset(options.test, samples=options.images)
    rows = []
    for name, size in itertools.product(("vgg-mildly-adversarial", "resnet-standard"), (0.02, 0.05, 0.1)):
        backbone = load_checkpoint(name).requires_grad_(False)
        figures = untrained(backbone, calibration, test, size, depth=17, normalized=False)
        rows.append({"backbone": name, **figures})
    print(keep("untrained", rows))


def _others(options: argparse.Namespace) -> None:
    calibration = load_dataset(options.data, split="train", samples=256)
    test = load_dataset(options.test, samples=options.images)
    name, size = "vgg-mildly-adversarial", 0.01
    rows = other_untrained(load_checkpoint(name).requires_grad_(False), calibration, test, size)
    print(
        keep("untrained-others", {"backbone": name, "wanted_residual_sd": size, **_provenance(options), "rows": rows})
    )


def _collect(options: argparse.Namespace) -> None:
    print(collect(options.out / f"{options.name}.jsonl", Path(__file__).with_name("results")))


if __name__ == "__main__":
    main()
