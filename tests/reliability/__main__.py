"""``python -m tests.reliability [COMMAND ...]``: measure, store, and write docs/reliability.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks.records import store
from pytest_gradmask.training.provenance import exit_code
from tests.reliability.devices import devices
from tests.reliability.measurement import RESULTS, Record, coverage, mutants, nightly, version_matrix
from tests.reliability.page import write

MEASUREMENTS: dict[str, Callable[..., Record]] = {
    "nightly": nightly,
    "devices": devices,
    "coverage": coverage,
    "mutants": mutants,
    "versions": version_matrix,
}
#: Those that can measure the tests of some files alone.
_OF_FILES = ("nightly", "devices")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 1 if a nightly test has failed, or devices differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    choices = [*MEASUREMENTS, "page"]
    parser.add_argument("commands", nargs="*", choices=[*choices, []], metavar="COMMAND", help=f"{', '.join(choices)}")
    parser.add_argument(
        "--files", nargs="+", default=[], metavar="FILE", help="of nightly and devices: only tests in these files"
    )
    options = parser.parse_args(argv)

    failed = False

    def run() -> None:
        nonlocal failed
        for name in options.commands or MEASUREMENTS:
            if name != "page":
                record = MEASUREMENTS[name](*([options.files] if name in _OF_FILES and options.files else []))
                failed |= any(test["outcome"] == "failed" for test in record.get("tests", ()))
                failed |= any(test["cpu"] != test["pretend"] for test in record.get("audits", ()))
                store(name, record, RESULTS)
        write()

    return exit_code(run) or int(failed)


if __name__ == "__main__":
    sys.exit(main())
