"""Functions that several generated pages of `docs/` share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def share(found: Sequence[float] | None) -> str:
    """A proportion with its bounds, which is ``value, low, high``; nothing for none."""
    return "" if found is None else "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * value for value in found))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. No cell may hold a vertical bar."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
