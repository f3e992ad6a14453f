"""``python -m audits.zoo``: list the zoo, measure it, and write docs/known-defenses.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from audits.zoo import find
from audits.zoo.code import alone
from audits.zoo.measurement import REPEATED, RESULTS, Record, measure, repeat, store, stored, stored_record
from pytest_gradmask import InputError, load_dataset
from pytest_gradmask.auditing.research import BUDGETS, get_budget
from pytest_gradmask.training.provenance import exit_code


def summary(name: str, record: Record) -> str:
    """A record in one line of text."""
    truth, audit = record["truth"], record["audit"]
    shares = {
        "clean": audit["clean_accuracy"]["value"],
        "gradient": audit["gradient_attacks"]["value"],
        "reference": truth["reference"][0],
    }
    figures = ", ".join(f"{label} {value:.1%}" for label, value in shares.items())
    gap, low, high = (100 * bound for bound in truth["gap"])
    masked = "masked" if truth["masked"] else "not masked"
    return f"{name}: {masked}, {audit['verdict']}; {figures}, gap {gap:.1f} % [{low:.1f}, {high:.1f}]"


def _list(options: argparse.Namespace) -> None:
    for entry in find(options.names):
        print(f"{entry.name} ({entry.backbone})\n{entry.story}\n")


def _say(name: str, message: str) -> None:
    print(f"{name}: {message}", file=sys.stderr)


def _measure(options: argparse.Namespace) -> None:
    entries, budget = find(options.names), get_budget(options.budget)
    data = load_dataset(options.data, samples=options.samples or budget.samples, seed=options.seed)
    margin = budget.margin if options.margin is None else options.margin
    known = stored(options.output) if options.missing else {}
    for entry in entries:
        if entry.name not in known:
            progress = partial(_say, entry.name)
            record = measure(
                entry, data, budget=budget, margin=margin, device=options.device, seed=options.seed, progress=progress
            )
            store(entry.name, record, options.output)
            print(summary(entry.name, record), flush=True)


def _repeat(options: argparse.Namespace) -> None:
    budget = get_budget(options.budget)
    samples, margin = REPEATED.get(budget.name, (budget.samples, budget.margin))
    margin = margin if options.margin is None else options.margin
    for seed in options.seeds:
        data = load_dataset(options.data, samples=options.samples or samples, seed=seed)
        for entry in find(options.names):
            record = _measured(entry.name, options.output)
            repeats = {(each["budget"], each["seed"], each["exhaustive"]): each for each in record.get("repeats", [])}
            key = (budget.name, seed, options.exhaustive)
            if options.missing and "versions" in repeats.get(key, {}):  # those without are of an earlier rule
                continue
            repeats[key] = repeat(
                entry, data, budget=budget, margin=margin, device=options.device, seed=seed,
                exhaustive=options.exhaustive,
            )  # fmt: skip
            store(entry.name, {**record, "repeats": [repeats[each] for each in sorted(repeats)]}, options.output)
            print(f"{entry.name}, seed {seed}: {repeats[key]['verdict']}", flush=True)


def _code(options: argparse.Namespace) -> None:
    budget = get_budget(options.budget)
    data = load_dataset(options.data, samples=options.samples or budget.samples, seed=options.seed)
    for entry in find(options.names):
        record = _measured(entry.name, options.output)
        if options.missing and "code" in record:
            continue
        found = alone(entry, data, budget=budget, device=options.device, seed=options.seed)
        store(entry.name, {**record, "code": found}, options.output)
        print(f"{entry.name}: {found}", flush=True)


def _measured(name: str, folder: Path) -> Record:
    record = stored_record(name, folder)
    if record is None:
        raise InputError(f"defense {name!r}: not measured yet; python -m audits.zoo measure {name}")
    return record


def _page(_: argparse.Namespace) -> None:
    from audits.zoo.page import write

    write()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m audits.zoo", description="The zoo of known defenses.", epilog="Exit status: 2 on bad input."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = {"nargs": "*", "default": [], "metavar": "DEFENSE", "help": "which (default: all)"}

    listing = commands.add_parser("list", help="print the history of each defense")
    listing.add_argument("names", **names)  # type: ignore[arg-type]
    listing.set_defaults(run=_list)

    measuring = commands.add_parser("measure", help="measure the truth about each defense, and audit it")
    measuring.set_defaults(run=_measure)

    coding = commands.add_parser("code", help="what operation-level BPDA breaks alone, beside the reference")
    coding.set_defaults(run=_code)

    for command in (measuring, coding):
        command.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")

    repeating = commands.add_parser("repeat", help="audit measured defenses with other seeds")
    repeating.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N", help="(default: 1 2 3 4)")
    repeating.add_argument("--exhaustive", action="store_true", help="run every attack on every image")
    repeating.set_defaults(run=_repeat)

    samples, margin = REPEATED["smoke"]
    for command in (measuring, coding, repeating):
        add = command.add_argument
        add("names", **names)  # type: ignore[arg-type]
        add("--data", default="embedded", metavar="SPEC", help="as of --gradmask-data (default: %(default)s)")
        add(
            "--samples",
            type=int,
            metavar="N",
            help=f"images, chosen at random (default: the budget's; {samples} in repeats at smoke)",
        )
        add("--budget", choices=BUDGETS, default="ci", help="budget of the attacks (default: %(default)s)")
        add(
            "--margin",
            type=float,
            metavar="SHARE",
            help=f"a larger gap is masking (default: the budget's; {margin:g} in repeats at smoke)",
        )
        add("--device", default="cpu", help="torch device (default: %(default)s)")
        add("--missing", action="store_true", help="measure only what is not stored yet")
        add("--output", type=Path, default=RESULTS, metavar="FOLDER", help="(default: audits/zoo/results)")

    page = commands.add_parser("page", help="write docs/known-defenses.md from the stored records")
    page.set_defaults(run=_page)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
