"""``python -m pytest_gradmask.training``: train recipes, measure what came out, save it with its card."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pytest_gradmask.checkpoints import load_card, load_model, save_model
from pytest_gradmask.datasets import Dataset, load_dataset
from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.training.loop import augment, initialised, load_state, total_steps, train
from pytest_gradmask.training.measurement import measure
from pytest_gradmask.training.provenance import describe, describe_device, exit_code, output_directory, versions
from pytest_gradmask.training.recipes import Recipe, load_recipe

logger = logging.getLogger(__name__)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """One data set after the other."""
    for part in parts:
        if part.images.shape[1:] != parts[0].images.shape[1:]:
            raise InputError(
                f"data {part.source!r}: images of shape {tuple(part.images.shape[1:])} do not go with "
                f"{tuple(parts[0].images.shape[1:])} of {parts[0].source!r}; bring images of one shape"
            )
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    return Dataset(images, labels, "+".join(part.source for part in parts))


def check_fit(recipe: Recipe, data: Dataset) -> None:
    """Try the recipe's untrained model on an image: what does not fit the data must fail before hours of training."""
    try:
        with torch.no_grad():
            logits = initialised(recipe).eval()(augment(data.images[:1], torch.Generator()))
    except GradmaskError as error:
        raise InputError(f"recipe {recipe.name!r}: {error}") from error
    except Exception as error:  # what layers make of arguments and images that do not fit them has no common type
        shape = tuple(data.images.shape[1:])
        raise InputError(
            f"recipe {recipe.name!r}: architecture {recipe.architecture!r} with arguments {recipe.arguments} does not "
            f"work on images of shape {shape} ({type(error).__name__}: {error}); change arguments or data"
        ) from error
    highest = int(data.labels.max())
    if logits.ndim != 2 or logits.shape[1] <= highest:
        raise InputError(
            f"recipe {recipe.name!r}: architecture {recipe.architecture!r} with arguments {recipe.arguments} returns "
            f"{tuple(logits.shape[1:])} for an image, and labels go up to {highest}; raise num_classes"
        )


def check(options: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """Refuse what can be refused before any data is read."""
    names = [recipe.name for recipe in recipes]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"recipes: more than one is named {', '.join(repeated)}; give each a name of its own")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no such device; use --device cpu or auto")


def run(options: argparse.Namespace) -> None:
    """Check everything, then train, measure and save one recipe after the other."""
    recipes = [load_recipe(file) for file in options.recipes]
    check(options, recipes)
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    output, states = output_directory(options.output), output_directory(options.state)
    parts = [load_dataset(spec, split="train") for spec in options.data]
    data, test = joined(parts), load_dataset(options.test, split="test")
    calibration = load_dataset(options.calibration, split="train") if options.calibration else data
    common = {"data": [describe(part) for part in parts], "versions": versions(), "device": describe_device(device)}
    del parts  # joined() copied them
    for number, recipe in enumerate(recipes):
        if recipe.initial and recipe.initial not in [earlier.name for earlier in recipes[:number]]:
            load_card(recipe.initial, output)  # raises if there is none
        check_fit(recipe, data)
        check_fit(recipe, test)
        total_steps(recipe, len(data))  # raises if they are too few
        load_state(states / f"{recipe.name}.state", recipe, len(data))  # raises if it is another run's
    states.mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        file = states / f"{recipe.name}.state"
        initial = load_model(recipe.initial, output) if recipe.initial else None
        model = train(recipe, data, initial=initial, calibration=calibration, device=device, state_file=file)
        finished = load_state(file, recipe, len(data)) or {}
        card = {
            "architecture": recipe.architecture,
            "arguments": recipe.arguments,
            "recipe": asdict(recipe),
            **common,
            "calibration": describe(calibration) if recipe.recalibrate else None,
            "seed": recipe.seed,
            "training_seconds": finished.get("seconds"),
            "measured": measure(model, test, device),
        }
        logger.info("%s: saved %s: %s", recipe.name, save_model(recipe.name, model, card, output), card["measured"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_gradmask.training",
        description="Train recipes one after the other; measure and save each model with a card.",
        epilog="Exit status: 0 if all were saved, 2 on bad input, which is told on stderr before anything is written.",
    )
    spec = "embedded, cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR or npz:FILE"
    add = parser.add_argument
    add("recipes", nargs="+", type=Path, metavar="RECIPE", help="a TOML file, as in fixtures/")
    add("--data", action="append", required=True, metavar="SPEC", help=f"training data: {spec}; may be repeated")
    add("--calibration", metavar="SPEC", help="images for recipes with recalibrate = true (default: the training data)")
    add("--test", required=True, metavar="SPEC", help=f"test data: {spec}")
    add("--output", type=Path, metavar="DIR", help="where to save the models (default: the package's fixtures)")
    add("--state", type=Path, default="runs", metavar="DIR", help="progress, to resume from (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(main())
