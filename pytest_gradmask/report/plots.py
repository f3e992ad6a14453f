"""Plots, with matplotlib: ``pip install pytest-gradmask[report]``."""

from __future__ import annotations

import importlib
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_gradmask.checks import check_is, refuse
from pytest_gradmask.errors import DependencyError, InputError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.transfer.matrix import TransferMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Makes files reproducible: no random names, and no style that the user has set.
_STYLE = {"svg.hashsalt": "gradmask", "svg.fonttype": "none", "font.size": 9}


def plot_transfer_matrix(matrix: TransferMatrix, file: str | Path) -> None:
    """Draw a transfer matrix: row = crafted on, column = tested on, in each cell the share of images that fool it.

    Shares are of the images that every model classifies correctly without an attack. The diagonal shows how well the
    attack works at all.

    Args:
        matrix: from `transfer_matrix`.
        file: ends in ``.svg`` or ``.png``; replaced in one atomic step. Its folder is created if it does not exist.

    Raises:
        InputError: another suffix.
        DependencyError: matplotlib is not installed.
    """
    check_is("matrix", matrix, "what transfer_matrix() returned", TransferMatrix)
    values = [[100 * matrix.fooled(source, target).value for target in matrix.names] for source in matrix.names]
    side, longest = 0.55 * len(matrix.names), max(map(len, matrix.names))
    labels = 0.7 + 0.07 * longest
    with saved(file, (side + labels, side + labels)) as figure:
        axes = figure.add_subplot()
        heat(axes, values, matrix.names, matrix.names, "{:.0f} %")
        axes.set_aspect("equal")
        axes.tick_params(axis="x", rotation=90 if longest > 6 else 0)
        axes.set_xlabel("tested on")
        axes.set_ylabel("crafted on")
        axes.set_title(f"{matrix.attack} attack:\nfooled of {len(matrix.common)} images")


@contextmanager
def saved(file: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure to draw on, then write it to a file in one atomic step. Its folder is created if needed.

    Args:
        file: ends in ``.svg`` or ``.png``.
        size: width and height in inches.

    Raises:
        InputError: another suffix.
        DependencyError: matplotlib is not installed.
    """
    file = _as_path(file)
    form = file.suffix[1:].lower()
    if form not in ("svg", "png"):
        raise InputError(f"file={str(file)!r}: must end in .svg or .png")
    style, figures = (_matplotlib(f"matplotlib.{name}") for name in ("style", "figure"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with style.context(["default", _STYLE]), replaced(file) as part:
        # Not pyplot: it would store the figure, and choose a backend for the whole process.
        figure = figures.Figure(figsize=size)
        yield figure
        date = {"Date": None} if form == "svg" else None
        figure.savefig(part, format=form, dpi=150, metadata=date, bbox_inches="tight")


def _as_path(file: object) -> Path:
    check_is("file", file, "a path that ends in .svg or .png", str, os.PathLike)
    try:
        return Path(os.fspath(file))  # type: ignore[call-overload]
    except Exception as error:  # the object is not ours
        raise refuse("file", file, f"a path that ends in .svg or .png ({type(error).__name__})") from error


def drawn(size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """A figure of this width and height in inches as the text of an SVG document.

    Text is shown as it is: a dollar sign does not start a formula.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    style, figures = (_matplotlib(f"matplotlib.{name}") for name in ("style", "figure"))
    with style.context(["default", _STYLE, {"text.parse_math": False}]):
        figure = figures.Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", dpi=200, metadata={"Date": None})
    return text.getvalue()


def heat(
    axes: Axes, values: Sequence[Sequence[float]], columns: Sequence[str], rows: Sequence[str], form: str = "{:.0f}"
) -> None:
    """Draw percentages as a heat map with a figure in each cell. A cell with NaN stays empty.

    The colour map cividis increases in brightness, and looks the same to colour-blind readers.
    """
    axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if not math.isnan(value):
                colour = "black" if value > 55 else "white"
                axes.text(column, row, form.format(value), ha="center", va="center", color=colour)


def _matplotlib(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":  # matplotlib is there, but a package that it needs is not
            raise
        raise DependencyError(
            "plots need matplotlib, which is not installed; run: pip install 'pytest-gradmask[report]'"
        ) from error
