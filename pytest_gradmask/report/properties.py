"""Audits as properties of tests, which ``--junitxml`` and other reports of pytest show beside each test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHARES = {
    "clean_accuracy": "clean_accuracy",
    "gradient_accuracy": "gradient_attacks",
    "robust_accuracy": "all_attacks",
}


def properties(audit: Mapping[str, Any], number: int) -> list[tuple[str, object]]:
    """Name and value of each property. What an audit does not have is left out.

    Args:
        audit: in its JSON form.
        number: position among the audits of its test, from 1. Names of the first audit begin with ``gradmask_``, those
            of the second with ``gradmask_2_``.
    """
    prefix = "gradmask" if number == 1 else f"gradmask_{number}"
    return [(f"{prefix}_{name}", value) for name, value in _values(audit)]


def _values(audit: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "verdict", audit["verdict"]
    yield "defense", audit["defense"]
    yield "images", audit["images"]
    figures = {name: (audit[share], "value") for name, share in _SHARES.items()} | {"gap": (audit["gap"], "estimate")}
    for name, (figure, key) in figures.items():
        if figure is not None:
            yield name, round(figure[key], 4)
            yield f"{name}_low", round(figure["low"], 4)
            yield f"{name}_high", round(figure["high"], 4)
    if audit["findings"]:
        yield "findings", ", ".join(finding["id"] for finding in audit["findings"])
    yield "reasons", "; ".join(audit["reasons"])
