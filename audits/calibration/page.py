"""The page and the picture of the calibration, from the results of ``python -m audits.calibration``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot  # after the backend is chosen

from audits.calibration.rates import MODES, Row, missed, percent, rate, with_bound, worst, wrong
from audits.calibration.sections import (
    attempts_section,
    early_section,
    excluded_section,
    margin_section,
    null_section,
    power_section,
    randomized_section,
    rules_section,
    size_section,
)
from audits.calibration.simulation import MASKED, NOT_MASKED
from audits.markdown import table

HERE = Path(__file__).parent

#: Colour-blind readers can distinguish these colours (Okabe and Ito).
_COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2")


def draw(power: Mapping[str, Sequence[Sequence[float]]], folder: Path) -> None:
    """Power against the number of images for each gap, as ``power.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    # The same results make the same file: no date, no random names.
    matplotlib.rcParams.update({"svg.hashsalt": "gradmask", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 3.4))
    for (gap, curve), colour in zip(sorted(power.items(), key=lambda item: -float(item[0])), _COLOURS, strict=True):
        sizes, chance = zip(*curve, strict=True)
        axes.plot(sizes, [100 * value for value in chance], color=colour, label=f"{100 * float(gap):g} points")
    axes.axhline(95, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    ticks = (10, 20, 50, 100, 200, 500, 1000)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 101)
    axes.set_xlabel("images")
    axes.set_ylabel("audits that say MASKED, in %")
    axes.legend(title="gap", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(folder / "power.svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def markdown(stored: Mapping[str, Any]) -> str:
    """The page."""
    parts = [
        (HERE / "introduction.md").read_text().strip(),
        _summary(stored),
        null_section(stored["without_masking"]),
        power_section(stored["with_a_gap"]),
        excluded_section(stored["with_a_gap"]),
        margin_section(stored["around_the_margin"]),
        early_section(stored["early_stopping"]),
        randomized_section(stored["candidate_points"]),
        size_section([*stored["around_the_margin"], *stored["with_a_gap"]]),
        attempts_section(stored["repeated_attempts"]),
        rules_section(stored["compared_rules"]),
        "<sub>Simulated with "
        + ", ".join(f"{name} {number}" for name, number in stored["versions"].items())
        + ".</sub>",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(stored: Mapping[str, Any]) -> str:
    null, gaps = stored["without_masking"], stored["with_a_gap"]
    early = [row for row in stored["early_stopping"] if row["placebo_gets"] == "unbroken"]
    randomized = [row for row in stored["candidate_points"] if row["runs"] > 1]
    wanted = [row for row in gaps if (row["images"], row["gap"]) == (200, 0.2)]
    simple, parts = ([r for r in wanted if (r["finders"] == "parts") == apart] for apart in (False, True))

    def least(rows: Sequence[Row], mode: str) -> str:
        return percent(min(row[mode][MASKED] / row["audits"] for row in rows))

    lines = [
        (
            "`MASKED` without masking, at most, at any margin",
            [with_bound(worst(null, m, MASKED)) for m in MODES],
            "1 %",
        ),
        (
            "the same where attacks stop early, at most",
            [with_bound(worst(early, m, MASKED)) for m in MODES],
            "1 %",
        ),
        (
            "the same on randomized defenses whose chances differ between points, at most",
            [with_bound(max(rate(row[m], row["audits"]) for row in randomized)) for m in MODES],
            "1 %",
        ),
        (
            "`NOT_MASKED` with a gap of the margin or more, at most",
            [with_bound(worst(missed(gaps), m, NOT_MASKED)) for m in MODES],
            "1 %",
        ),
        *(
            (
                f"`{name}` in one of five audits of a defense, {where}, at most",
                [with_bound(wrong(stored["repeated_attempts"], images, gap)) for images in ("more", "new")],
                "1 %",
            )
            for name, where, gap in (
                ("MASKED", "without masking", False),
                ("NOT_MASKED", "with a gap of the margin", True),
            )
        ),
        (
            "`MASKED` with a gap of 20 percentage points, 200 images, at least: one attack finds all of it",
            [least(simple, m) for m in MODES],
            "95 % or more",
        ),
        ("the same, each of four attacks finds a quarter", [least(parts, m) for m in MODES], ""),
        (
            "lower bound of the gap above the true gap, up to 200 images, at most",
            ["", with_bound(max(rate(row["misses"][0], row["audits"]) for row in [*null, *gaps] if row["misses"]))],
            "1 %",
        ),
        (
            "upper bound of the gap below the true gap, up to 200 images, at most",
            ["", with_bound(max(rate(row["misses"][1], row["audits"]) for row in [*null, *gaps] if row["misses"]))],
            "1 %",
        ),
    ]
    rows = [[what, *rates, wish] for what, rates, wish in lines]
    return "## In short\n\n" + table(["", "exhaustive", "in turn", "wanted"], rows)
