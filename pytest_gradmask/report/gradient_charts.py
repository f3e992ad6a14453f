"""The charts of the HTML report that show how useful a gradient is to an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_gradmask.report.charts import KINDS, Picture, legend, picture, plain
from pytest_gradmask.report.wording import eps_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Style of the defense's gradient, of the gradient around what BPDA bypasses, and of a random direction.
_STYLES = (*(KINDS[kind] for kind in ("gradient", "adaptive")), ("#555555", "^"))


def noise_chart(noise: Mapping[str, Any]) -> Picture:
    """The cosine of the gradient with the gradient of the loss smoothed over several distances."""
    radii = [f"1/{round(1 / radius)}" if radius < 1 else f"{radius:.3g}" for radius in noise["radii"]]
    means = [mean_cosines(way) for way in noise["ways"]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, color="#555555", linewidth=1)
        for shift, way, mean, (colour, marker) in zip((-0.08, 0.08), noise["ways"], means, _STYLES, strict=False):
            for column, values in enumerate(way["cosines"]):
                known = [value for value in values if value is not None]
                axes.plot([column + shift] * len(known), known, marker, color=colour, markersize=3, alpha=0.45)
            known_means = [(column + shift, value) for column, value in enumerate(mean) if value is not None]
            axes.plot(*(list(axis) for axis in zip(*known_means, strict=True)) if known_means else ([], []),
                      color=colour, marker=marker, markersize=6)  # fmt: skip
        axes.set(ylim=(-1.05, 1.05), xlim=(-0.4, len(radii) - 0.6), ylabel="cosine")
        axes.set_xticks(range(len(radii)), radii)
        axes.set_xlabel("distance over which the loss is smoothed, in eps")
        plain(axes)
        drawn = [
            (way["name"], *style)
            for way, mean, style in zip(noise["ways"], means, _STYLES, strict=False)
            if any(value is not None for value in mean)
        ]
        legend(figure, drawn, columns=1)

    text = "; ".join(
        f"{way['name']}: " + ", ".join(f"{'none' if m is None else f'{m:.2f}'} at {r} eps"
                                      for m, r in zip(mean, radii, strict=True))
        for way, mean in zip(noise["ways"], means, strict=True)
    )  # fmt: skip
    return picture(3.0, f"Mean cosine with the gradient of the smoothed loss. {text}", draw)


def mean_cosines(way: Mapping[str, Any]) -> list[float | None]:
    """The mean cosine at each distance, over the images that have one; None if no image has one."""
    known = [[value for value in values if value is not None] for values in way["cosines"]]
    return [sum(values) / len(values) if values else None for values in known]


def lines_chart(landscape: Mapping[str, Any], eps: float) -> Picture:
    """The logit margin of one image along each direction."""
    lines = landscape["lines"]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        nan = float("nan")
        for line, (colour, marker), dash in zip(lines, _styles(len(lines)), ("-", "--", ":"), strict=False):
            values = [nan if value is None else value for value in line["margins"]]
            axes.plot(_positions(len(values)), values, dash, color=colour, marker=marker, markevery=4, markersize=4)
        low, high = axes.get_ylim()
        high = max(high, 0.05 * (high - low))
        axes.axhspan(0, high, color="#A63603", alpha=0.12, linewidth=0)
        axes.axhline(0, color="#A63603", linewidth=1)
        axes.set(ylim=(min(low, -0.05 * high), high), xlim=(-1, 1), ylabel="logit margin")
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], _ticks(eps))
        axes.set_xlabel("step along the direction")
        plain(axes)
        styles = _styles(len(lines))
        legend(figure, [(_along(line), *style) for line, style in zip(lines, styles, strict=False)], columns=1)

    text = "; ".join(f"along {_along(line)} it goes {_span(line['margins'])}" for line in lines)
    alt = f"Logit margin of image {landscape['image']} within eps, above 0 where misclassified: {text}"
    return picture(3.1, alt, draw)


def map_chart(landscape: Mapping[str, Any], eps: float) -> Picture:
    """The logit margin of one image along each gradient and a random direction: one map for each gradient."""
    maps = landscape["maps"]
    known = [value for each in maps for row in each["margins"] for value in row if value is not None]
    largest = max((abs(value) for value in known), default=1.0) or 1.0

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
        for axes, each in zip(panels, maps, strict=True):
            nan = float("nan")
            values = [[nan if value is None else value for value in row] for row in each["margins"]]
            shown = axes.imshow(
                values, cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower", extent=(-1, 1, -1, 1)
            )
            if any(value > 0 for value in known):
                positions = _positions(len(values))
                axes.contour(positions, positions, values, levels=[0], colors="black", linewidths=1)
            first = each is maps[0]
            axes.set_xticks([-1, 0, 1], _ticks(eps)[::2] if first else ["", *_ticks(eps)[2::2]])
            axes.set_yticks([-1, 0, 1], _ticks(eps)[::2])
            axes.set_xlabel("the defense's own gradient" if first else "around the bypass")
            axes.tick_params(left=first)
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("random direction")
        figure.colorbar(shown, ax=panels, location="bottom", shrink=0.8, aspect=40, label="logit margin")

    text = "; ".join(
        f"along {each['along']} {_misclassified(each['margins'])} points of the map are misclassified" for each in maps
    )
    alt = f"Map of the logit margin around image {landscape['image']}, inside the ball: {text}"
    return picture(3.1, alt, draw)


def _styles(lines: int) -> list[tuple[str, str]]:
    """Styles of the gradients, and of the random direction, which comes last."""
    return [*_STYLES[: lines - 1], _STYLES[-1]]


def _along(line: Mapping[str, Any]) -> str:
    return f"{line['along']} (it is zero)" if line["zero"] else str(line["along"])


def _positions(count: int) -> list[float]:
    return [2 * index / (count - 1) - 1 for index in range(count)]


def _ticks(eps: float) -> list[str]:
    half, whole = eps_text(eps / 2), eps_text(eps)
    return [f"\N{MINUS SIGN}{whole}", f"\N{MINUS SIGN}{half}", "0", half, whole]


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"from {min(known):.3g} to {max(known):.3g}" if known else "nowhere finite"


def _misclassified(rows: Sequence[Sequence[float | None]]) -> str:
    known = [value for row in rows for value in row if value is not None]
    return f"{sum(value > 0 for value in known)} of {len(known)}"
