"""``python -m audits.honest``: audit honest models, and write the table of false alarms into docs/limits.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from audits.honest.measurement import RESULTS, measure, store, stored
from audits.honest.models import NUMBER, honest_models
from pytest_gradmask.auditing.research import BUDGETS
from pytest_gradmask.training.provenance import exit_code


def _list(options: argparse.Namespace) -> None:
    for honest in honest_models()[options.start : options.end]:
        print(honest.name)


def _measure(options: argparse.Namespace) -> None:
    for honest in honest_models()[options.start : options.end]:
        records = stored(options.output)  # read again: another run may have added some
        if "verdict" in records.get(honest.name, ()) and not options.again:  # what raised is tried again
            continue
        record = measure(honest, samples=options.samples, budget=options.budget)
        store({**stored(options.output), honest.name: record}, options.output)
        said = ", ".join(record.get("findings", ()))
        print(f"{honest.name}: {record.get('verdict', record.get('error'))} {said}", flush=True)


def _page(options: argparse.Namespace) -> None:
    from audits.honest.page import write

    write(stored(options.output))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m audits.honest",
        description="Models that hide no gradient.",
        epilog="Exit status: 2 on bad input.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="print how each model is made")
    listing.set_defaults(run=_list)
    measuring = commands.add_parser("measure", help="audit those that are not stored yet")
    measuring.set_defaults(run=_measure)
    page = commands.add_parser("page", help="write the tables of docs/limits.md")
    page.set_defaults(run=_page)
    for command in (listing, measuring):
        command.add_argument("--start", type=int, default=0, metavar="N", help="first model (default: %(default)s)")
        command.add_argument("--end", type=int, default=NUMBER, metavar="N", help="(default: %(default)s, exclusive)")
    for command in (measuring, page):
        command.add_argument(
            "--output", type=Path, default=RESULTS, metavar="FILE", help="records (default: %(default)s)"
        )
    measuring.add_argument("--samples", type=int, default=30, metavar="N", help="images (default: %(default)s)")
    measuring.add_argument("--budget", choices=BUDGETS, default="smoke", help="(default: %(default)s)")
    measuring.add_argument("--again", action="store_true", help="audit stored ones again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
