"""``python -m audits.leaderboard``: collect entries from stored records, add one of a run, and write the page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from audits.leaderboard.entries import FOLDER, entry_of, from_zoo, store, stored
from audits.leaderboard.page import PAGE, render
from audits.zoo import find
from audits.zoo.measurement import stored as stored_records
from pytest_gradmask import InputError
from pytest_gradmask.training.provenance import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m audits.leaderboard", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the entries")
    commands = parser.add_subparsers(required=True)
    collect = commands.add_parser("collect", help="entries of known defenses, from the stored records of audits.zoo")
    collect.add_argument("names", nargs="*", help="by default all that have a record")
    collect.set_defaults(run=_collect)
    add = commands.add_parser("add", help="an entry of your run")
    add.add_argument("run_file", type=Path, help="what --gradmask-json wrote")
    add.add_argument("--name", required=True, help="of the entry: lower-case letters, digits and dashes")
    add.add_argument("--source", required=True, help="the paper or repository of the defense")
    add.add_argument("--by", required=True, help="who ran the audit")
    add.add_argument("--checkpoint", type=Path, action="append", default=[], help="file with weights; may be repeated")
    add.add_argument("--test", default="", help="the test of the run, if it has several audits")
    add.set_defaults(run=_add)
    page = commands.add_parser("page", help="write the page")
    page.add_argument("--output", type=Path, default=PAGE)
    page.set_defaults(run=_page)
    options = parser.parse_args(arguments)
    return exit_code(lambda: options.run(options))


def _collect(options: argparse.Namespace) -> None:
    records = stored_records()
    for entry in find(options.names):
        if entry.name in records:
            print(store(from_zoo(entry, records[entry.name]), options.folder))


def _add(options: argparse.Namespace) -> None:
    try:
        run = json.loads(options.run_file.read_text(encoding="utf-8"))
        found = [audit for audit in run["audits"] if options.test in audit["test"] and not audit["error"]]
        versions = found[0]["provenance"]["versions"] if found else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{options.run_file}: is no run of --gradmask-json ({type(error).__name__}: {error})"
        ) from error
    if len(found) != 1:
        raise InputError(f"{options.run_file}: has {len(found)} audits of {options.test!r}; name one with --test")
    missing = [str(file) for file in options.checkpoint if not file.is_file()]
    if missing:
        raise InputError(f"--checkpoint: no such file: {', '.join(missing)}")
    entry = entry_of(
        found[0], name=options.name, source=options.source, by=options.by, checkpoints=options.checkpoint,
        command=found[0]["provenance"]["reproduce"], versions=versions,
    )  # fmt: skip
    print(store(entry, options.folder))


def _page(options: argparse.Namespace) -> None:
    options.output.write_text(render(stored(options.folder)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
