"""``python -m pytest_gradmask.training``: train recipes, measure the models, save each with its card."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import torch
from torch import nn

from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.execution.versions import versions
from pytest_gradmask.loading.checkpoints import available, load_card, load_checkpoint, save_card, save_model
from pytest_gradmask.loading.datasets import Dataset, load_dataset
from pytest_gradmask.loading.models.composites import Composite
from pytest_gradmask.training.loop import Progress, augment, initialised, total_steps, train
from pytest_gradmask.training.measurement import measure
from pytest_gradmask.training.provenance import describe, describe_device, exit_code, output_directory
from pytest_gradmask.training.recipes import Recipe, load_recipe
from pytest_gradmask.training.state import load_state

logger = logging.getLogger(__name__)


def joined(parts: Sequence[Dataset]) -> Dataset:
    """Concatenate data sets."""
    for part in parts:
        if part.images.shape[1:] != parts[0].images.shape[1:]:
            raise InputError(
                f"data {part.source!r}: images of shape {tuple(part.images.shape[1:])} do not go with "
                f"{tuple(parts[0].images.shape[1:])} of {parts[0].source!r}; bring images of one shape"
            )
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    return Dataset(images, labels, "+".join(part.source for part in parts))


def check_fit(recipe: Recipe, data: Dataset, backbone: nn.Module | None) -> None:
    """Run the recipe's untrained model on one image, so that a model that does not fit fails before hours of training.

    ``backbone`` is the backbone of a front end. If it is None because it is not trained yet, only the front end runs.

    Raises:
        InputError: the model does not fit the data.
    """
    image = augment(data.images[:1], torch.Generator())
    try:
        with torch.no_grad():
            output = initialised(recipe).eval()(image)
            if recipe.backbone and output.shape != image.shape:
                raise InputError(
                    f"architecture {recipe.architecture!r} is no front end: it makes {tuple(output.shape[1:])} of "
                    f"{tuple(image.shape[1:])}; use 'dncnn', or leave backbone out"
                )
            if backbone is not None:
                output = backbone(output)
    except GradmaskError as error:
        raise InputError(f"recipe {recipe.name!r}: {error}") from error
    except Exception as error:  # layers raise various errors on arguments and images that do not fit
        shape = tuple(data.images.shape[1:])
        raise InputError(
            f"recipe {recipe.name!r}: architecture {recipe.architecture!r} with arguments {recipe.arguments} does not "
            f"work on images of shape {shape} ({type(error).__name__}: {error}); change arguments or data"
        ) from error
    if recipe.backbone and backbone is None:
        return
    highest = int(data.labels.max())
    if output.ndim != 2 or output.shape[1] <= highest:
        raise InputError(
            f"recipe {recipe.name!r}: architecture {recipe.architecture!r} with arguments {recipe.arguments} returns "
            f"{tuple(output.shape[1:])} for an image, and labels go up to {highest}; raise num_classes"
        )


def check(options: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """Check the options and recipes before any data is read."""
    names = [name for recipe in recipes for name in {recipe.name, product(recipe)}]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"recipes: more than one is named {', '.join(repeated)}; give each another name")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no such device; use --device cpu or auto")


def product(recipe: Recipe) -> str:
    """Name of the checkpoint with the weights that a recipe makes."""
    return f"{recipe.name}-front-end" if recipe.backbone else recipe.name


def in_order(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Sort the recipes so that each comes after those whose checkpoints it needs."""
    makers = {product(recipe): recipe for recipe in recipes}
    needs = {name: [n for n in (recipe.initial, recipe.backbone) if n in makers] for name, recipe in makers.items()}
    try:
        return [makers[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError as error:
        raise InputError(f"recipes: {' needs '.join(error.args[1])}; one of them must start anew") from error


def run(options: argparse.Namespace) -> None:
    """Check everything, then train, measure and save one recipe after the other."""
    recipes = [load_recipe(file) for file in options.recipes]
    check(options, recipes)
    recipes = in_order(recipes)
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    output, states = output_directory(options.output), output_directory(options.state)
    parts = [load_dataset(spec, split="train") for spec in options.data]
    data, test = joined(parts), load_dataset(options.test, split="test")
    calibration = load_dataset(options.calibration, split="train") if options.calibration else data
    common = {
        "data": [describe(part) for part in parts],
        "versions": versions("torch", "torchvision", "timm"),
        "device": describe_device(device),
    }
    del parts  # joined() copied them
    for number, recipe in enumerate(recipes):
        earlier = [product(other) for other in recipes[:number]]
        if recipe.initial and recipe.initial not in earlier:
            load_card(recipe.initial, output)  # raises if there is no such card
        backbone = load_backbone(recipe, output) if recipe.backbone not in earlier else None
        check_fit(recipe, data, backbone)
        check_fit(recipe, test, backbone)
        total_steps(recipe, len(data))  # raises if there are too few steps
        load_state(states / f"{recipe.name}.state", recipe, len(data))  # raises if the state belongs to another run
    states.mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        file = states / f"{recipe.name}.state"
        initial = load_checkpoint(recipe.initial, output) if recipe.initial else None
        backbone = load_backbone(recipe, output)
        with training_progress(recipe.name) as report:
            model = train(
                recipe, data, initial=initial, backbone=backbone, calibration=calibration, device=device,
                state_file=file, report=report,
            )  # fmt: skip
        finished = load_state(file, recipe, len(data))
        assert finished is not None
        card = {
            "architecture": recipe.architecture,
            "arguments": recipe.arguments,
            "recipe": asdict(recipe),
            **common,
            "calibration": describe(calibration) if recipe.recalibrate or recipe.residual_std else None,
            "seed": recipe.seed,
            "training_seconds": finished["seconds"],
            "history": [dict(zip(("step", "loss", "accuracy"), entry, strict=True)) for entry in finished["history"]],
        }
        if backbone is None:
            measured = measure(model, test, device, pgd_images=options.pgd_images)
            save_model(product(recipe), model, {**card, "measured": measured}, output)
        else:
            save_model(product(recipe), model, card, output)
            composite = Composite(model, backbone)
            measured = measure(composite, test, device, bypass=("front_end",), pgd_images=options.pgd_images)
            made_of = {"front_end": product(recipe), "backbone": recipe.backbone}
            save_card(recipe.name, {"architecture": "composite", **made_of, "measured": measured}, output)
        logger.info("%s: saved in %s: %s", recipe.name, output, measured)


def load_backbone(recipe: Recipe, output: Path) -> nn.Module | None:
    """The backbone of a front end, from the output directory or, if it is not there, from the package's fixtures."""
    if not recipe.backbone:
        return None
    here = recipe.backbone in available(output)
    return load_checkpoint(recipe.backbone, output if here else None)


@contextmanager
def training_progress(name: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr, if stderr is a terminal. Further details go to the log."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    console = Console(stderr=True)
    if not console.is_terminal:  # there, the progress bar of old rich releases leaves an empty line
        yield lambda progress: None
        return
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, shown="")

        def report(progress: Progress) -> None:
            shown = f"{progress.step}/{progress.total} loss {progress.loss:.3f} accuracy {progress.accuracy:.3f}"
            bar.update(task, total=progress.total, completed=progress.step, shown=shown)

        yield report


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer of at least 1, such as 500")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_gradmask.training",
        description="Train recipes one after the other; measure and save each model with a card.",
        epilog="Exit status: 0 if all models were saved; 2 on bad input, with a message on stderr and nothing written.",
    )
    spec = "embedded, cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR or npz:FILE"
    add = parser.add_argument
    add("recipes", nargs="+", type=Path, metavar="RECIPE", help="a TOML file, as in fixtures/")
    add("--data", action="append", required=True, metavar="SPEC", help=f"training data: {spec}; may be repeated")
    add("--calibration", metavar="SPEC", help="images for recipes with recalibrate = true (default: the training data)")
    add("--test", required=True, metavar="SPEC", help=f"test data: {spec}")
    add("--pgd-images", type=_count, default=500, metavar="N", help="test images to attack (default: %(default)s)")
    add("--output", type=Path, metavar="DIR", help="where to save the models (default: the package's fixtures)")
    add("--state", type=Path, default="runs", metavar="DIR", help="progress to resume from (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(main())
