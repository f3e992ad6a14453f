"""The charts of the HTML report: from plain data to SVG, each with an alternative text that says the same.

All charts are as wide as a phone, so that their text is readable there. Wider screens show several side by side.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_gradmask.report.plots import drawn, heat
from pytest_gradmask.report.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.4  # inches
#: Colour and marker of each kind of attack. Colour-blind readers can distinguish these colours (Okabe and Ito).
KINDS = {"gradient": ("#0072B2", "o"), "adaptive": ("#D55E00", "s"), "placebo": ("#555555", "^"), "": ("black", "D")}
#: Label and colour of each state of `survival_states`.
_STATES = (
    ("not attacked any more", "#FFFFFF"),
    ("survives", "#9CC9E8"),
    ("broken", "#A63603"),
    ("misclassified without an attack", "#8C8C8C"),
)
_GRIDDED = 60  # up to so many images, cells have edges


class Picture(NamedTuple):
    """An image for a page: its source as a data URI, and its alternative text."""

    src: str
    alt: str


def picture(height: float, alt: str, draw: Callable[[Figure], None]) -> Picture:
    """A chart of the report's width and of this height, in inches."""
    text = drawn((_WIDTH, height), draw)
    return Picture("data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode(), alt)


def accuracy_chart(audit: Mapping[str, Any]) -> Picture:
    """Robust accuracy after each attack, with its bounds."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = [("no attack", "", audit["clean_accuracy"])]
    # The table names those that were skipped.
    rows += [
        (name, result["kind"], result)
        for name, result in audit["robust_accuracy"].items()
        if not result["status"].startswith("skipped")
    ]
    rows.append(("all attacks", "", audit["all_attacks"]))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        labels = []
        for row, (_, kind, share) in enumerate(rows):
            colour, marker = KINDS[kind]
            if share["value"] is None:
                labels.append(share["status"])
                continue
            labels.append(percent(share["value"]))
            axes.plot([100 * share["low"], 100 * share["high"]], [row, row], color=colour, linewidth=2)
            axes.plot(100 * share["value"], row, marker, color=colour, markersize=5, clip_on=False, zorder=3)
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel="robust accuracy, %")
        axes.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows])
        right = axes.twinx()
        right.set(ylim=axes.get_ylim())
        right.set_yticks(range(len(rows)), labels)
        for side in (axes, right):
            side.tick_params(axis="y", length=0, pad=8)  # markers at 0 and 100 % are half outside
            side.spines[["top", "left", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color="#DDDDDD")
        legend(figure, [(kind, *KINDS[kind]) for kind in dict.fromkeys(kind for _, kind, _ in rows) if kind])

    alt = "Robust accuracy: " + "; ".join(
        f"{name} {share['status'] if share['value'] is None else percent(share['value'])}" for name, _, share in rows
    )
    return picture(0.22 * len(rows) + 0.85, alt, draw)


def survival_chart(outcomes: Mapping[str, Any]) -> Picture:
    """Which attack broke which image: images from left to right, attacks from top to bottom."""
    states = survival_states(outcomes)
    names = [attack["name"] for attack in outcomes["attacks"]]
    columns = sorted(range(len(outcomes["clean"])), key=lambda image: _order([row[image] for row in states]))
    cells = [[row[image] for image in columns] for row in states]

    def draw(figure: Figure) -> None:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        axes = figure.add_subplot()
        colours = ListedColormap([colour for _, colour in _STATES])
        if len(columns) <= _GRIDDED:
            axes.pcolormesh(cells, cmap=colours, vmin=0, vmax=3, edgecolors="#BBBBBB", linewidth=0.4)
        else:
            size = (0, len(columns), 0, len(names))
            axes.imshow(cells, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest", extent=size,
                        origin="lower")  # fmt: skip
        axes.set(ylim=(len(names), 0), xlabel=f"{len(columns)} images, sorted by what breaks them", xticks=[])
        axes.set_yticks([row + 0.5 for row in range(len(names))], [_short(name) for name in names])
        axes.tick_params(axis="y", length=0)
        seen = {state for row in states for state in row}
        patches = [
            Patch(facecolor=colour, edgecolor="#888888", label=label)
            for state, (label, colour) in enumerate(_STATES)
            if state in seen
        ]
        figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False)

    correct = sum(outcomes["clean"])
    alt = f"{correct} of {len(columns)} images are classified correctly without an attack. " + "; ".join(
        f"{attack['name']} breaks {len(attack['broken'])} of {len(attack['attacked'])}"
        for attack in outcomes["attacks"]
    )
    return picture(0.22 * len(names) + 0.95, alt, draw)


def survival_states(outcomes: Mapping[str, Any]) -> list[list[int]]:
    """For each attack and image: 0 not attacked, 1 survives, 2 broken, 3 misclassified without an attack."""
    states = []
    for attack in outcomes["attacks"]:
        attacked, broken = set(attack["attacked"]), set(attack["broken"])
        states.append(
            [
                2 if image in broken else 1 if image in attacked and right else 0 if right else 3
                for image, right in enumerate(outcomes["clean"])
            ]
        )
    return states


def _order(states: Sequence[int]) -> tuple[Any, ...]:
    return (3 in states, next((row for row, state in enumerate(states) if state == 2), len(states)), states)


def transfer_chart(transfer: Mapping[str, Any]) -> Picture:
    """The transfer matrix: row = crafted on, column = tested on."""
    names = [_short(name) for name in transfer["names"]]
    values = [[100 * share["value"] for share in row] for row in transfer["fooled"]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        heat(axes, values, names, names, "{:.0f} %" if len(names) < 7 else "{:.0f}")
        axes.tick_params(axis="x", rotation=90 if max(map(len, names)) > 6 else 0)
        axes.set(xlabel="tested on", ylabel="crafted on")

    text = "; ".join(
        f"crafted on {source}: " + ", ".join(f"{target} {percent(share['value'])}"
                                             for target, share in zip(transfer["names"], row, strict=True))
        for source, row in zip(transfer["names"], transfer["fooled"], strict=True)
    )  # fmt: skip
    return picture(min(4.4, 1.6 + 0.4 * len(names)), f"Share of images that fool each model. {text}", draw)


def legend(figure: Figure, entries: Sequence[tuple[str, str, str]], columns: int = 3) -> None:
    """Draw a legend below the chart. Each entry has a label, a colour and a marker."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, label=textwrap.fill(label, 58)) for label, colour, marker in entries
    ]
    figure.legend(handles=handles, loc="outside lower left" if columns == 1 else "outside lower center",
                  ncols=columns, frameon=False)  # fmt: skip


def plain(axes: Axes) -> None:
    """Remove the frame, and draw light grid lines behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#DDDDDD")


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
