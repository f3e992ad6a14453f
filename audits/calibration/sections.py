"""The sections of the page of the calibration, each with a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from audits.calibration.exact import chances
from audits.calibration.populations import FINDERS
from audits.calibration.rates import MODES, Row, groups, missed, percent, rate, with_bound, worst
from audits.calibration.simulation import MASKED, NOT_MASKED
from audits.markdown import table

#: Audits of fewer images have a single analysis.
_SEVERAL_ANALYSES = 100


def null_section(rows: Sequence[Row]) -> str:
    lines = []
    for (images, effect), group in groups(rows, lambda row: (row["images"], row["effect"])).items():
        equal, real = ([row for row in group if row["costs"] == spent] for spent in ("equal", "ci"))
        lines.append(
            [
                str(images),
                f"{100 * effect:g} %",
                with_bound(worst(equal, "exhaustive", MASKED)),
                with_bound(worst(real, "exhaustive", MASKED)),
                with_bound(worst(real, "in_turn", MASKED)),
                f"{100 * max(row['bound'] for row in equal):.2f} %",
            ]
        )
    headings = ["images", "placebo effect", "equal costs", "costs of `ci`", "costs of `ci`, in turn", "calculated"]
    return "\n\n".join(
        [
            "## No masking: how often `MASKED`?",
            f"Each cell is the largest rate (with its upper bound) over robust accuracies of 10, 50 and 90 % and "
            f"correlations of 0, 0.5 and 1 between attacks, {rows[0]['audits']:,} audits each. The margin is 0.1 %, "
            "so that only the tests prevent false alarms. With equal costs, every attack has the same success "
            "probability as the placebo. *Calculated* is an exact upper bound for equal costs. It is valid for any "
            "dependence between the interim analyses.",
            table(headings, lines),
            "An interim analysis after each attack is safe for two reasons. Each planned analysis has its share of the "
            "error, even if it is not made. At each analysis, the placebo has had the same budget as all adaptive "
            "attacks together. A smaller placebo would not be safe: with four fifths of its budget, false alarms "
            "exceed 1 %, as `tests/audits/test_calibration_simulation.py` shows.",
        ]
    )


def power_section(rows: Sequence[Row]) -> str:
    lines = []
    for (images, margin, gap), group in groups(rows, lambda row: (row["images"], row["margin"], row["gap"])).items():
        found = {(row["finders"], row["effect"]): row for row in group}
        cells = [
            " / ".join(percent(found[finders, effect][mode][MASKED] / group[0]["audits"]) for mode in MODES)
            for effect in (0.0, 0.02)
            for finders in FINDERS
        ]
        lines.append([str(images), f"{100 * margin:g}", f"{100 * gap:g}", *cells])
    headings = ["images", "margin", "gap"]
    headings += [f"{name}{more}" for more in ("", ", placebo 2 %") for name in FINDERS]
    return "\n\n".join(
        [
            "## A true gap: how often `MASKED`?",
            f"Exhaustive / in turn, {rows[0]['audits']:,} audits each. The heading says which attacks find the gap. "
            "The placebo effect is zero unless the heading gives one. Margin and gap are in percentage points. Where "
            "the gap is below the margin, `MASKED` is not wanted.",
            table(headings, lines),
            "![Power against the number of images](figures/power.svg)",
            "Exact power at a margin of 5 percentage points, where one attack finds the gap and the placebo finds "
            "nothing. If the gap is equal to the margin, nearly half of large audits are `MASKED`, because the "
            "estimate has to exceed the margin, not the lower bound.",
        ]
    )


def excluded_section(rows: Sequence[Row]) -> str:
    lines = []
    for (images, margin, gap), group in groups(
        missed(rows), lambda row: (row["images"], row["margin"], row["gap"])
    ).items():
        _, calculated = chances(images, margin, gap)
        lines.append(
            [
                str(images),
                f"{100 * margin:g}",
                f"{100 * gap:g}",
                *(with_bound(worst(group, mode, NOT_MASKED)) for mode in MODES),
                f"{100 * calculated:.2f} %",
            ]
        )
    return "\n\n".join(
        [
            "## A gap of the margin or more: how often `NOT_MASKED`?",
            "Each cell is the largest rate over the attacks that find the gap and over placebo effects of 0 and 2 %. "
            "*Calculated* is exact, for one attack that finds the gap and a placebo without effect.",
            table(["images", "margin", "gap", "exhaustive", "in turn", "calculated"], lines),
        ]
    )


def margin_section(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        shares = " / ".join(percent(number / row["audits"]) for number in row["in_turn"])
        measured = f"{round(100 * row['true_gap'], 1) + 0.0:.1f}"
        lines.append(
            [
                str(row["images"]),
                f"{100 * row['margin']:g}",
                f"{100 * row['gap']:g}",
                f"{100 * row['effect']:g} %",
                measured,
                shares,
            ]
        )
    half = [row for row in rows if row["share"] == 0.5]
    alarms = percent(max(row["in_turn"][MASKED] / row["audits"] for row in half))
    verdicts = " / ".join(f"`{name}`" for name in ("MASKED", "NOT_MASKED", "INCONCLUSIVE"))
    headings = ["images", "margin", "masked", "placebo effect", "gap", verdicts]
    return "\n\n".join(
        [
            "## What a verdict does not promise",
            "Where the gradient attacks have not converged, the placebo and the adaptive attacks both break more "
            "images. This causes no false alarms, because the placebo has the same budget. It adds noise, however, "
            "that keeps defenses without masking from `NOT_MASKED`. Here attacks cost the same, all of them find the "
            "masked images, 60 % of the images survive the gradient attacks, and audits run in turn. *Masked* is the "
            "share of images that no gradient attack would break at any budget. *Gap* is the gap that the audit "
            "measures. Both are in percentage points.",
            table(headings, lines),
            f"If a defense masks half the margin, up to {alarms} of these audits are `MASKED`.",
        ]
    )


def early_section(rows: Sequence[Row]) -> str:
    lines = []
    for (images, margin, broken), group in groups(rows, lambda r: (r["images"], r["margin"], r["broken"])).items():
        apart = groups(group, lambda row: row["placebo_gets"])
        cells = [with_bound(worst(apart[gets], mode, MASKED)) for gets in ("unbroken", "mean") for mode in MODES]
        lines.append([str(images), f"{100 * margin:g}", f"{100 * broken:g} %", *cells])
    headings = ["images", "margin", "broken", "exhaustive", "in turn", "mean: exhaustive", "mean: in turn"]
    return "\n\n".join(
        [
            "## Attacks that stop early: how often `MASKED`?",
            "Here nothing is masked, and gradient attacks have not converged at all: adaptive attacks break a large "
            "share of the survivors (*broken*), because every further pass breaks images. 60 % of the images survive "
            "the gradient attacks. An attack leaves an image once it is broken. So the mean passes of all attacked "
            "images are fewer than what an unbroken image faced. The placebo gets as many passes as an unbroken image "
            "faced in all adaptive attacks. The last two columns are a negative control, in which it gets the mean "
            "(the rule up to version 0.1): this placebo is too small, and the verdict blames the defense. Each cell "
            f"is the largest rate over correlations of 0 and 0.5 between attacks, {rows[0]['audits']:,} audits each. "
            "The placebo gets exactly these passes, not rounded up to whole restarts. Margins are in percentage "
            "points.",
            table(headings, lines),
        ]
    )


def randomized_section(rows: Sequence[Row]) -> str:
    lines = []
    for (images, margin, sd), group in groups(rows, lambda row: (row["images"], row["margin"], row["between"])).items():
        cells = []
        for runs in (7, 1):
            (row,) = [row for row in group if row["runs"] == runs]
            rates = " / ".join(with_bound(rate(row[mode], row["audits"])) for mode in MODES)
            cells += [f"{round(100 * row['gap'], 1) + 0.0:.1f}", rates]
        lines.append([str(images), f"{100 * margin:g}", f"{sd:g}", *cells])
    headings = ["images", "margin", "SD between points", "gap", "`MASKED`", "one run: gap", "one run: `MASKED`"]
    return "\n\n".join(
        [
            "## Randomized defenses: chances that differ between points",
            "Seven adaptive attacks each return one point for each image. Nothing is masked: the chance of a correct "
            "answer at a point is the image's own chance plus noise, whichever attack found the point. The "
            "standard deviation of this noise is 0.1. The worst of many points looks worse than the worst of a "
            "few. So the placebo runs once for each adaptive attack. The last two columns are a negative control, in "
            f"which it runs once. Exhaustive / in turn, {rows[0]['audits']:,} audits each, judged by the test for "
            "randomized defenses. *Gap* is the mean gap that audits measure. Margin and gap are in percentage points. "
            "In turn, a decision follows each attack, on all images at once.",
            table(headings, lines),
        ]
    )


def attempts_section(rows: Sequence[Row]) -> str:
    lines = [
        [
            f"`{'NOT_MASKED' if row['gap'] else 'MASKED'}`",
            f"{100 * row['effect']:g} %",
            "new, in turn" if row["images"] == "new" else "more, exhaustive",
            *(
                with_bound(rate(number, row["users"]))
                for number in (row["counted"][0], row["counted"][-1], row["uncounted"][-1])
            ),
        ]
        for row in rows
    ]
    sizes = [f"{size:,}" for size in rows[0]["sizes"]]
    headings = ["wrong verdict", "placebo effect", "images", "first audit", "all five", "uncounted: all five"]
    return "\n\n".join(
        [
            "## Repeated audits: how often is one of them wrong?",
            f"A user audits one defense {len(sizes)} times, on {', '.join(sizes[:-1])} and {sizes[-1]} images, and "
            "hopes for the wrong verdict: `MASKED` where nothing is masked (at a margin of 0.1 %), or `NOT_MASKED` "
            "where the gap is as large as the margin of 5 percentage points. No other verdict ends the series. The "
            "images of an audit are *new*, or all those of the audit before, on which the attacks do the same again, "
            "and some *more*. A cell is the share of users who have had the wrong verdict after the first audit, or "
            f"after one of all five, of {rows[0]['users']:,} users. Each audit has the share of the error that its "
            "[attempt](statistics.md#repeated-audits) has. The last column is a negative control, in which each audit "
            "has the error of a first attempt.",
            table(headings, lines),
        ]
    )


def rules_section(compared: Mapping[str, Sequence[Sequence[float]]]) -> str:
    power = [[f"{100 * gap:g}", f"{old:g}", f"{new:g}"] for gap, old, new in compared["images"]]
    quiet = [
        [f"{images:g}", f"{100 * margin:g}", f"{100 * effect:g} %", percent(old), percent(new)]
        for images, margin, effect, old, new in compared["not_masked"]
    ]
    return "\n\n".join(
        [
            "## What the exact unconditional tests gain",
            "Up to version 0.1, McNemar's conditional test had an equal share of the error at each decision, and the "
            "upper bound ignored the images that the placebo alone breaks. Both figures here are calculated. First: "
            "how many images it takes to say `MASKED` with a chance of 90 %, at the last of 16 decisions and a margin "
            "of 2 percentage points, where one attack finds the gap.",
            table(["gap", "images by the old rule", "images"], power),
            "Second: how often a single analysis excludes a gap of the margin without masking, where adaptive attacks "
            "alone break as many images as the placebo alone does (*placebo effect*). An audit says `NOT_MASKED` only "
            "if also the placebo breaks no more images than the margin.",
            table(["images", "margin", "placebo effect", "by the old rule", "excluded"], quiet),
        ]
    )


def size_section(rows: Sequence[Row]) -> str:
    lines = []
    for (images, gap), group in sorted(groups(rows, lambda row: (row["images"], row["gap"])).items()):
        quiet = [row for row in group if row["effect"] == 0 and row["finders"] == "all"]
        if images >= _SEVERAL_ANALYSES and quiet:
            mean = sum(int(size) * audits for size, audits in quiet[0]["sizes"].items()) / quiet[0]["audits"]
            ends = ", ".join(
                f"{size}: {percent(audits / quiet[0]['audits'])}" for size, audits in quiet[0]["sizes"].items()
            )
            lines.append([str(images), f"{100 * quiet[0]['margin']:g}", f"{100 * gap:g}", f"{mean:.0f}", ends])
    return "\n\n".join(
        [
            "## How many images does it take?",
            "Audits in turn, where every attack finds the gap and the placebo finds nothing: the mean number of images "
            "that an audit analyses, and the share of audits that end at each number of images.",
            table(["images", "margin", "gap", "analysed", "ends"], lines),
        ]
    )
