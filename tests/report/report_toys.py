"""Audits in their JSON form, made by hand, for tests of reports that need no real audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gradmask.plugin.fixtures import Gradmask
from pytest_gradmask.report.json import crash_to_json, document
from pytest_gradmask.verdict.stats import accuracy_bounds


def share(chances: Sequence[float], confidence: float = 0.99) -> dict[str, Any]:
    """A mean of chances with bounds."""
    low, high = accuracy_bounds(chances, confidence)
    return {
        "value": sum(chances) / len(chances),
        "low": low,
        "high": high,
        "count": sum(chances),
        "total": len(chances),
    }


def plain_audit(
    test: str = "test_it.py::test_toy",
    verdict: str = "NOT_MASKED",
    *,
    robust: Sequence[float] = (1, 1, 0, 0),
    clean: Sequence[float] = (),
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An audit; by default every image is correct without an attack. ``settings`` replace those of its provenance."""
    clean = clean or [1] * len(robust)
    return {
        **crash_to_json(test, "toy", RuntimeError()),
        "verdict": verdict,
        "error": None,
        "reasons": [f"it is {verdict}"],
        "images": len(robust),
        "images_given": len(robust),
        "attempt": 1,
        "margin": 0.25,
        "confidence": 0.99,
        "clean_accuracy": share(clean),
        "gradient_attacks": share(robust),
        "all_attacks": share(robust),
        "gap": {
            "estimate": 0.0,
            "low": -0.1,
            "high": 0.2,
            "low_level": 0.991,
            "high_level": 0.991,
            "excess": 0,
            "placebo_only": 0,
            "p_value": 1.0,
            "analyses": 1,
        },
        "per_image": {"index": list(range(len(robust))), "clean": list(clean), "robust": list(robust)},
        "provenance": {
            "versions": {"python": "3.11"},
            "device": "cpu",
            "seed": 0,
            "images": len(robust),
            "images_hash": "0" * 64,
            "precision": "auto",
            "search_precision": "own",
            "threat": {"norm": "Linf", "eps": 0.1, "bounds": [0.0, 1.0]},
            "budget": "smoke",
            "budget_settings": {"apgd_steps": 20},
            "autoattack": "AutoAttack",
            "reproduce": "",
            **(settings or {}),
        },
        **changes,
    }


def plain_run(*audits: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A run with these audits."""
    provenance = {
        "command": ["pytest"],
        "started": "2026-01-01T00:00:00+00:00",
        "python": "3.11.0",
        "platform": "Linux",
        "settings": {"budget": "smoke", "device": "cpu", "data": "embedded", "samples": None, "seed": 0},
    }
    return document(audits, provenance, **changes)


def record(gradmask: Gradmask, verdict: str = "NOT_MASKED", **changes: Any) -> None:
    """Record an audit with this outcome, without running one."""
    gradmask._record(plain_audit(gradmask._node.nodeid, verdict, **changes))


def timeless_json(audit: dict[str, Any]) -> dict[str, Any]:
    """An audit without its times, changed in place."""
    audit["seconds"] = None
    for attack in audit["robust_accuracy"].values():
        attack["seconds"] = None
    return audit
