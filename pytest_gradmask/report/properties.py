"""Audits as properties of tests: what ``--junitxml`` and other reports that pytest knows of say beside each test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHARES = {
    "clean_accuracy": "clean_accuracy",
    "gradient_accuracy": "gradient_attacks",
    "robust_accuracy": "all_attacks",
}


def properties(audit: Mapping[str, Any], number: int) -> list[tuple[str, object]]:
    """Name and value of each; what an audit does not have is left out.

    Args:
        audit: in its JSON form.
        number: which of its test's audits it is, from 1; names of the first begin with ``gradmask_``, those of the
            second with ``gradmask_2_``.
    """
    prefix = "gradmask" if number == 1 else f"gradmask_{number}"
    return [(f"{prefix}_{name}", value) for name, value in _values(audit)]


def _values(audit: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "verdict", audit["verdict"]
    yield "defense", audit["defense"]
    yield "images", audit["images"]
    figures = {name: (audit[key], "value") for name, key in _SHARES.items()} | {"gap": (audit["gap"], "estimate")}
    for name, (figure, middle) in figures.items():
        if figure is not None:
            yield name, round(figure[middle], 4)
            yield f"{name}_low", round(figure["low"], 4)
            yield f"{name}_high", round(figure["high"], 4)
    if audit["findings"]:
        yield "findings", ", ".join(finding["id"] for finding in audit["findings"])
    yield "reasons", "; ".join(audit["reasons"])
