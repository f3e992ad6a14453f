"""Pictures of the measurements for the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot  # after the backend is chosen
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from pytest_gradmask.report.plots import heat

# The same results make the same file: no random names, and no date where it is saved.
matplotlib.rcParams.update({"svg.hashsalt": "gradmask", "font.size": 9, "svg.fonttype": "none"})

Share = Sequence[float]  # value, lower bound, upper bound

#: Series of a bar chart: heading and colour. Colour-blind readers can distinguish these colours (Okabe and Ito).
_SERIES = {
    "clean": ("clean", "#999999"),
    "autoattack": ("AutoAttack's attacks", "#56B4E9"),
    "gradient": ("gradient attacks", "#0072B2"),
    "square": ("Square", "#E69F00"),
    "bpda": ("BPDA", "#D55E00"),
}


def draw(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw a picture of each claim that has figures, as ``claim-NUMBER.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in dict.fromkeys(record["claim"] for record in records):
        details = [record["details"] for record in records if record["claim"] == number]
        figure = _picture(number, details)
        if figure is not None:
            _save(figure, folder / f"claim-{number}.svg")


def draw_gains(runs: Sequence[tuple[float, float, int]], file: Path) -> None:
    """What hides the gradient of trained front ends: the gain of their residual.

    Args:
        runs: of each training the gain, the share that is hidden from PGD of what BPDA breaks, and the depth.
        file: to write, SVG.
    """
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    depths = sorted({depth for _, _, depth in runs})
    for depth, marker in zip(depths, "ovs^D<>Pp*X", strict=False):
        own = [(gain, 100 * hidden) for gain, hidden, each in runs if each == depth]
        axes.plot(*zip(*own, strict=True), marker, label=f"{depth} convolutions", markersize=5)
    axes.axvline(1, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("gain: length of the gradient behind the residual's Jacobian, before it 1")
    axes.set_ylabel("hidden from PGD, %\nof what BPDA breaks")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _without_frame(axes)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def _picture(number: str, details: Sequence[Mapping[str, Any]]) -> Any:
    if number == "6":
        return _grid(details[0]["cells"])
    if number == "B":
        return _matrices(details)
    audits = [audit for detail in details for audit in (*detail.get("audits", ()), *detail.get("cells", ()))]
    if audits:
        return _bars({audit["defense"]: audit["accuracies"] for audit in audits})
    return _lines({name: share for detail in details for name, share in detail.get("accuracies", {}).items()})


def _bars(rows: Mapping[str, Mapping[str, Share]]) -> Any:
    series = [key for key in _SERIES if any(key in shares for shares in rows.values())]
    height = 0.8 / len(series)
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.16 * (len(series) + 1) * len(rows)))
    for index, key in enumerate(series):
        found = [(row, shares[key]) for row, shares in enumerate(rows.values()) if key in shares]
        positions = [row + (index + 0.5) * height - 0.4 for row, _ in found]
        _whiskers(axes, positions, [share for _, share in found], height, _SERIES[key][1])
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    _finish(axes)
    legend = [Patch(color=colour, label=name) for name, colour in (_SERIES[key] for key in series)]
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _lines(shares: Mapping[str, Share]) -> Any:
    if not shares:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.35 * len(shares)))
    _whiskers(axes, list(range(len(shares))), list(shares.values()), 0.6, "#0072B2")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    _finish(axes)
    return figure


def _whiskers(axes: Axes, positions: Sequence[float], shares: Sequence[Share], height: float, colour: str) -> None:
    values = [100 * value for value, _, _ in shares]
    below = [100 * (value - low) for value, low, _ in shares]
    above = [100 * (high - value) for value, _, high in shares]
    bars = {"ecolor": "black", "error_kw": {"elinewidth": 0.8}}
    axes.barh(positions, values, height, color=colour, xerr=[below, above], **bars)  # type: ignore[arg-type]


def _finish(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy in %, with bounds each valid at 99 %")
    _without_frame(axes)


def _without_frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _grid(cells: Sequence[Mapping[str, Any]]) -> Any:
    rates = list(dict.fromkeys(cell["rate"] for cell in cells))
    lengths = list(dict.fromkeys(cell["epochs"] for cell in cells))
    figure, panels = pyplot.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
    for axes, key in zip(panels, ("clean", "gradient", "bpda"), strict=True):
        found = {(cell["rate"], cell["epochs"]): 100 * cell["accuracies"][key][0] for cell in cells}
        values = [[found.get((rate, length), math.nan) for rate in rates] for length in lengths]
        heat(axes, values, rates, [f"{length:g}" for length in lengths])
        axes.set_title(_SERIES[key][0])
        axes.set_xlabel("learning rate")
    panels[0].set_ylabel("epochs")
    return figure


def _matrices(details: Sequence[Mapping[str, Any]]) -> Any:
    count = len(details[0]["fooled"])
    figure, panels = pyplot.subplots(
        1, len(details), figsize=(1 + 4.2 * len(details), 4.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, detail in zip(panels[0], details, strict=True):
        names = [name.replace("-composite", "") for name in detail["fooled"]]
        values = [[100 * share[0] for share in row.values()] for row in detail["fooled"].values()]
        assert len(values) == count
        heat(axes, values, names, names)
        axes.tick_params(axis="x", rotation=90)
        axes.set_title(f"{detail['attack']} attack: % fooled")
        axes.set_xlabel("tested on")
    panels[0][0].set_ylabel("crafted on")
    return figure
