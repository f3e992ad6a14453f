"""``python -m benchmarks COMMAND``: measure, store under benchmarks/results, and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.caching import cache_gain
from benchmarks.chunks import SIZES, chunk_costs
from benchmarks.defenses import find
from benchmarks.gpu import DRY, WHOLE, parts, unmeasured
from benchmarks.growth import AXES, growth, passes
from benchmarks.losses import losses
from benchmarks.memory import peak_memories
from benchmarks.queries import margin_growth
from benchmarks.records import RESULTS, machine, store
from benchmarks.searches import searches
from benchmarks.startup import startup_cost
from benchmarks.steps import step_costs
from benchmarks.strength import strengths
from benchmarks.surrogates import surrogates
from benchmarks.verdicts import time_to_verdict
from pytest_gradmask import load_dataset
from pytest_gradmask.auditing.research import BUDGETS
from pytest_gradmask.training.provenance import exit_code

Records = Iterator[tuple[str, dict[str, Any]]]


def _say(name: str, line: str) -> None:
    print(f"{name}: {line}", file=sys.stderr)


def _verdicts(options: argparse.Namespace) -> Records:
    data = load_dataset(options.data, samples=options.samples, seed=options.seed)
    for name in options.names:
        stages = options.output / f".verdict-{name}"
        if not options.resume:
            shutil.rmtree(stages, ignore_errors=True)
        record = time_to_verdict(
            name, find(name), data, device=options.device, seed=options.seed, enough=options.enough, stages=stages,
            progress=partial(_say, name),
        )  # fmt: skip
        yield f"verdict-{name}", record
        shutil.rmtree(stages, ignore_errors=True)


def _steps(options: argparse.Namespace) -> Records:
    data = load_dataset(options.data, samples=options.samples, seed=options.seed)
    for name in options.names:
        yield f"step-{name}", step_costs(name, find(name).model, data, device=options.device)


def _cache(options: argparse.Namespace) -> Records:
    data = load_dataset(options.data, samples=options.samples, seed=options.seed)
    for name in options.names:
        yield (
            f"cache-{name}",
            cache_gain(name, partial(find, name), data, device=options.device),
        )


def _memory(options: argparse.Namespace) -> Records:
    for name in options.names:
        yield f"memory-{name}", peak_memories(name, options.data, options.samples, device=options.device)


def _of_each(kind: str, measure: Callable[..., dict[str, Any]]) -> Callable[[argparse.Namespace], Records]:
    """Measures each defense by ``measure(name, defense, data, device=, seed=, progress=)``."""

    def records(options: argparse.Namespace) -> Records:
        data = load_dataset(options.data, samples=options.samples, seed=options.seed)
        for name in options.names:
            progress = partial(_say, name)
            yield (
                f"{kind}-{name}",
                measure(name, find(name), data, device=options.device, seed=options.seed, progress=progress),
            )

    return records


def _gpu(options: argparse.Namespace) -> Records:
    size = DRY if options.dry_run else WHOLE
    data = load_dataset(options.data, samples=min(options.samples, size.images), seed=options.seed)
    for name, measure in unmeasured(options.output, parts(size, data, options.device, partial(_say, "gpu"))):
        _say("gpu", name)
        yield f"gpu-{name}", {"part": name, "dry_run": options.dry_run, "found": measure()}


def _growth(options: argparse.Namespace) -> Records:
    for axis in options.names or AXES:
        _say("growth", axis)
        yield f"growth-{axis}", growth(axis, device=options.device)


def _passes(options: argparse.Namespace) -> Records:
    for budget in options.names or BUDGETS:
        _say("passes", budget)
        yield f"passes-{budget}", passes(budget)


def _chunks(options: argparse.Namespace) -> Records:
    for name in options.names or SIZES:
        _say("chunks", name)
        yield f"chunks-{name}", chunk_costs(name, device=options.device)


def _startup(_: argparse.Namespace) -> Records:
    yield "startup", startup_cost()


_COMMANDS = {
    "verdicts": (_verdicts, "time to a verdict, beside AutoAttack and BPDA by hand"),
    "steps": (_steps, "one step of APGD, beside upstream's"),
    "strength": (
        _of_each("strength", strengths),
        "accuracy under attacks, beside attacks of other libraries with the same number of steps",
    ),
    "cache": (_cache, "a second audit of an unchanged defense, beside the first"),
    "memory": (_memory, "peak memory of an audit, beside AutoAttack's"),
    "queries": (_of_each("queries", margin_growth), "how margins grow under attacks that need many queries"),
    "searches": (
        _of_each("searches", searches),
        "searches of Square and zero-order PGD in bfloat16, beside the defense's own precision",
    ),
    "gpu": (_gpu, "throughput, overhead, repeatability and verdicts on a GPU; goes on where it was cut off"),
    "losses": (_of_each("losses", losses), "other losses, starts and averaged gradients, at equal passes"),
    "surrogates": (
        _of_each("surrogates", surrogates),
        "a surrogate trained by queries, beside the attacks that need only queries",
    ),
    "growth": (
        _growth,
        "how cost grows; names of what grows (images, pixels, classes, members, width), or none for all",
    ),
    "passes": (_passes, "forwards for each image of an audit in which nothing breaks; budgets, or none for all"),
    "chunks": (
        _chunks,
        "time and memory by the number of images that are attacked at a time; names of networks, or none for all",
    ),
    "startup": (_startup, "the plugin, installed but not used"),
}


def _measure(options: argparse.Namespace) -> None:
    for name, record in options.measure(options):
        store(
            name, record | {"data": options.data.rpartition("/")[2], "machine": machine(options.device)}, options.output
        )
        print(f"{name}: {record}", flush=True)


def _page(_: argparse.Namespace) -> None:
    from benchmarks.page import write

    write()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (measure, description) in _COMMANDS.items():
        command = commands.add_parser(name, help=description)
        add = command.add_argument
        add(
            "names",
            nargs="*" if measure in (_startup, _gpu, _growth, _passes, _chunks) else "+",
            metavar="MODEL",
            help="a fixture such as resnet-standard-composite, or a known defense",
        )
        add("--data", default="embedded", metavar="SPEC", help="as of --gradmask-data (default: %(default)s)")
        add("--samples", type=int, default=200, metavar="N", help="images (default: %(default)s)")
        add("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
        add("--device", default="cpu", help="torch device (default: %(default)s)")
        add("--output", type=Path, default=RESULTS, metavar="FOLDER", help="(default: benchmarks/results)")
        if measure is _gpu:
            add("--dry-run", action="store_true", help="tiny sizes, to see on a CPU that every line runs")
        if measure is _verdicts:
            limit = "stop the work by hand once it has taken this many times as long as the audit"
            add("--enough", type=float, default=math.inf, metavar="RATIO", help=limit)
            add("--resume", action="store_true", help="continue a run that was interrupted, after its last attack")
        command.set_defaults(run=_measure, measure=measure)
    commands.add_parser("page", help="write docs/benchmarks.md from the stored results").set_defaults(run=_page)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
