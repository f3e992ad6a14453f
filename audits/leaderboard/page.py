"""The leaderboard as one HTML file. It loads nothing: its style and the script that sorts its table are inside."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "leaderboard.html"
HERE = Path(__file__).parent
_ORDER = ("NOT_MASKED", "INCONCLUSIVE", "MASKED")
_COLUMNS = (
    "entry", "verdict", "clean", "gradient attacks", "all attacks", "gap", "threat", "images", "budget", "audited by",
    "checkpoint",
)  # fmt: skip


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: first those that do not mask, by their robust accuracy under all attacks.

    Args:
        entries: by name.
    """
    ordered = sorted(
        entries.values(),
        key=lambda entry: (
            _ORDER.index(entry["verdict"]), -entry["figures"]["all_attacks"]["value"], entry["name"],
        ),
    )  # fmt: skip
    head = "".join(f'<th scope="col"><button>{name}</button></th>' for name in _COLUMNS)
    return (
        (HERE / "template.html")
        .read_text(encoding="utf-8")
        .replace("{count}", str(len(ordered)))
        .replace("{head}", head)
        .replace("{rows}", "\n".join(map(_row, ordered)))
    )


def _row(entry: Mapping[str, Any]) -> str:
    figures, gap, threat = entry["figures"], entry["gap"], entry["threat"]
    files = "<br>".join(f"{_text(file)} <code>{digest[:12]}</code>" for file, digest in entry["checkpoints"].items())
    details = (
        f"<details><summary>{_text(entry['name'])}</summary><p>{_text(entry['source'])}</p>"
        f"<p><code>{_text(entry['command'])}</code></p><p>Findings: {_text(', '.join(entry['findings']) or 'none')}</p>"
        "</details>"
    )
    cells = [
        (entry["name"], details),
        (_ORDER.index(entry["verdict"]), entry["verdict"]),
        *(_share(figures[name]) for name in ("clean", "gradient_attacks", "all_attacks")),
        (gap["estimate"], _bounds(gap["estimate"], gap["low"], gap["high"])) if gap else ("", "none"),
        (threat["eps"], f"{_text(threat['norm'])} {threat['eps']:.4g}"),
        (entry["images"], str(entry["images"])),
        (entry["budget"], _text(entry["budget"])),
        (entry["by"], _text(entry["by"])),
        ("", files or "none of its own"),
    ]
    row = "".join(f'<td data-value="{_text(value)}">{shown}</td>' for value, shown in cells)
    return f'<tr class="{entry["verdict"].lower().replace("_", "-")}">{row}</tr>'


def _share(share: Mapping[str, float] | None) -> tuple[object, str]:
    return ("", "none") if share is None else (share["value"], _bounds(share["value"], share["low"], share["high"]))


def _bounds(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} <small>[{100 * low:.1f}, {100 * high:.1f}]</small>"


def _text(value: object) -> str:
    return html.escape(str(value))
