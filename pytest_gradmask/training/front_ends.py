"""Front ends that are no defense on purpose: random, frozen, and calibrated to be nearly the identity.

``python -m pytest_gradmask.training.front_ends NAME --data SPEC`` makes one and saves it with its card.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pytest_gradmask.checkpoints import save_model
from pytest_gradmask.datasets import load_dataset
from pytest_gradmask.errors import InputError
from pytest_gradmask.models.front_ends import DnCNN, calibrate
from pytest_gradmask.training.provenance import describe, exit_code, output_directory, versions

logger = logging.getLogger(__name__)

_METHOD = "random initialisation from the seed, batch norm statistics and residual scale calibrated, no training"


def calibrated_front_end(depth: int, width: int, residual_std: float, seed: int, images: torch.Tensor) -> DnCNN:
    """A `DnCNN` with random weights that hardly changes images like these, however deep it is.

    Args:
        depth, width: of the `DnCNN`.
        residual_std: standard deviation of what it adds to ``images``, in input units, above 0.
        seed: of its weights; the global random state is untouched.
        images: N x C x H x W, a few hundred.

    Returns:
        The front end in eval mode.

    Raises:
        InputError: impossible depth or width, ``residual_std`` not above 0, or a residual that does not vary.
    """
    if not (math.isfinite(residual_std) and residual_std > 0):
        raise InputError(f"residual_std={residual_std}: must be above 0 and finite, such as 0.02")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would seed the generators of GPUs too, which are not restored here.
        torch.default_generator.manual_seed(seed)
        front_end = DnCNN(depth, width, channels=images.shape[1])
    calibrate(front_end, images, residual_std)
    if not all(bool(parameter.isfinite().all()) for parameter in front_end.parameters()):
        raise InputError(
            f"depth={depth}, width={width}, seed={seed}: the residual is the same for every pixel, so it cannot be "
            "scaled; take another seed, a larger width or other images"
        )
    return front_end


def measure(front_end: DnCNN, images: torch.Tensor) -> dict[str, float]:
    """How much a front end changes images: standard deviation and mean size of its residual, in input units."""
    with torch.no_grad():
        residual = front_end(images) - images
    return {"residual_std": residual.std().item(), "mean_absolute_change": residual.abs().mean().item()}


def make(options: argparse.Namespace) -> None:
    """Build, measure and save what the command line asks for."""
    folder = output_directory(options.output)
    data = load_dataset(options.data, split="train", samples=options.images, seed=options.seed)
    front_end = calibrated_front_end(options.depth, options.width, options.residual_std, options.seed, data.images)
    card: dict[str, Any] = {
        "architecture": "dncnn",
        "arguments": {"depth": options.depth, "width": options.width, "channels": data.images.shape[1]},
        "method": _METHOD,
        "residual_std": options.residual_std,
        "data": [describe(data)],
        "seed": options.seed,
        "versions": versions(),
        "measured": measure(front_end, data.images),
    }
    logger.info(
        "%s: %s, measured %s", options.name, save_model(options.name, front_end, card, folder), card["measured"]
    )


def _seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer from 0 to 2**32 - 1, such as 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_gradmask.training.front_ends",
        description="Make a random DnCNN front end that is nearly the identity, and save it with a card.",
        epilog="Exit status: 0 if the front end was saved, 2 on bad input, which is told on stderr; then nothing is "
        "written.",
    )
    parser.add_argument("name", metavar="NAME", help="of the checkpoint: lower-case letters, digits and dashes")
    parser.add_argument("--depth", type=int, default=65, help="convolutions, at least 3 (default: %(default)s)")
    parser.add_argument("--width", type=int, default=16, help="channels between them (default: %(default)s)")
    parser.add_argument(
        "--residual-std",
        type=float,
        default=0.02,
        metavar="STD",
        help="standard deviation of what it adds to the images, which are in [0, 1] (default: %(default)s)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of weights and choice of images (default: %(default)s)")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="what to calibrate on: embedded, cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR or npz:FILE; "
        "its training split, where it has one",
    )
    parser.add_argument("--images", type=int, default=512, metavar="N", help="how many of them (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to save it (default: the package's fixtures)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: make(options))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(main())
