"""A plot of what each attack costs and of the robust accuracy under it, from ``pytest --benchmark-json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_gradmask.errors import DataError, GradmaskError
from pytest_gradmask.report.plots import saved

#: The palette of Okabe and Ito, which colour-blind readers can distinguish. Markers are for more attacks than colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*X"
_COLUMNS = 3


def read_costs(file: str | Path) -> list[dict[str, Any]]:
    """Read what the fixture ``benchmark_attack`` has measured from a file of pytest-benchmark.

    Raises:
        DataError: the file does not exist, is not from pytest-benchmark, or has no results of that fixture.
    """
    try:
        found = [each["extra_info"] for each in json.loads(Path(file).read_text())["benchmarks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"file={str(file)!r}: not a file of pytest --benchmark-json ({error})") from error
    costs = [each for each in found if "forwards_per_image" in each]
    if not costs:
        raise DataError(f"file={str(file)!r}: no benchmark in it used the fixture benchmark_attack")
    return costs


def plot_attack_costs(costs: Sequence[Mapping[str, Any]], file: str | Path) -> None:
    """Plot robust accuracy against passes: one panel for each defense, one point for each attack.

    Attacks further down and to the left are better: they leave a lower robust accuracy at a lower cost.

    Args:
        costs: from `read_costs`.
        file: ends in ``.svg`` or ``.png``; replaced in one atomic step. Its folder is created if it does not exist.

    Raises:
        InputError: another suffix.
        DependencyError: matplotlib is not installed.
    """
    defenses = list(dict.fromkeys(each["defense"] for each in costs))
    attacks = list(dict.fromkeys(each["attack"] for each in costs))
    columns = min(_COLUMNS, len(defenses))
    rows = -(-len(defenses) // columns)
    with saved(file, (3.1 * columns + 1.6, 2.6 * rows)) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for panel in panels[len(defenses) :]:
            panel.set_visible(False)
        for defense, panel in zip(defenses, panels, strict=False):
            for each in (each for each in costs if each["defense"] == defense):
                number = attacks.index(each["attack"])
                value, low, high = (100 * bound for bound in each["robust_accuracy"])
                panel.errorbar(
                    each["forwards_per_image"] + each["backwards_per_image"], value, [[value - low], [high - value]],
                    color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)], markersize=5,
                    linewidth=0.6, linestyle="none", label=each["attack"],
                )  # fmt: skip
            panel.set_title(defense)
            panel.set_xscale("log")
            panel.set_ylim(-3, 103)
            panel.set_xlabel("passes an image, forward and backward")
        handles: dict[str, Any] = {}
        for panel in figure.axes:
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.axes[0].set_ylabel("robust accuracy, %")
        figure.legend(handles.values(), handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        figure.tight_layout()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m pytest_gradmask.report.costs BENCHMARK.json PICTURE.svg``."""
    parser = argparse.ArgumentParser(prog="python -m pytest_gradmask.report.costs", description=__doc__)
    parser.add_argument("benchmarks", type=Path, help="a file of pytest --benchmark-json")
    parser.add_argument("picture", type=Path, help="ends in .svg or .png")
    options = parser.parse_args(arguments)
    try:
        plot_attack_costs(read_costs(options.benchmarks), options.picture)
    except (GradmaskError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"written to {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
