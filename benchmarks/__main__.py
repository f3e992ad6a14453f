"""``python -m benchmarks verdicts NAME ... --data SPEC``: measure, and store under benchmarks/results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.records import RESULTS, machine, store
from benchmarks.verdicts import time_to_verdict
from pytest_gradmask import Defense, load_dataset, load_model
from pytest_gradmask.training.provenance import exit_code


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", file=sys.stderr)


def _verdicts(options: argparse.Namespace) -> None:
    data = load_dataset(options.data, samples=options.samples, seed=options.seed)
    for name in options.names:
        record = time_to_verdict(
            name, Defense(load_model(name), name=name), data, device=options.device, seed=options.seed,
            progress=partial(_say, name),
        )  # fmt: skip
        source = {"data": data.source.rpartition("/")[2], "machine": machine(options.device)}
        store(f"verdict-{name}", record | source, options.output)
        print(
            f"{name}: {record['verdict']} in {record['seconds']:.0f} s; by hand "
            f"{record['autoattack_seconds'] + record['bpda_seconds']:.0f} s, {record['ratio']:.1f} times as long",
            flush=True,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verdicts = commands.add_parser("verdicts", help="time to a verdict, beside AutoAttack and BPDA by hand")
    verdicts.add_argument("names", nargs="+", metavar="MODEL", help="a fixture, such as resnet-standard-composite")
    verdicts.add_argument("--samples", type=int, default=200, metavar="N", help="images (default: %(default)s)")
    verdicts.set_defaults(run=_verdicts)
    for command in (verdicts,):
        add = command.add_argument
        add("--data", default="embedded", metavar="SPEC", help="as of --gradmask-data (default: %(default)s)")
        add("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
        add("--device", default="cpu", help="torch device (default: %(default)s)")
        add("--output", type=Path, default=RESULTS, metavar="FOLDER", help="(default: benchmarks/results)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
