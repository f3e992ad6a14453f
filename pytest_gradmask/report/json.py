"""Audits as JSON: one object an audit, and the file that holds those of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_gradmask.files import replaced
from pytest_gradmask.results import Audit, Proportion, Verdict

#: Raised when a field changes its meaning or goes away.
VERSION = 1


def to_json(audit: Audit) -> dict[str, Any]:
    """One audit as plain data. Accuracies are shares of images with exact one-sided bounds."""
    gap = audit.gap
    return {
        "test": audit.test,
        "defense": audit.defense,
        "verdict": audit.verdict.name,
        "reasons": list(audit.reasons),
        "images": audit.total,
        "images_given": audit.given,
        "exhaustive": audit.exhaustive,
        "cached": audit.cached,
        "images_needed": audit.images_needed,
        "margin": audit.margin,
        "confidence": audit.confidence,
        "clean_accuracy": _proportion(audit.clean_accuracy),
        "robust_accuracy": {result.name: _attack(audit, result.name) for result in audit.attacks},
        "gradient_attacks": _proportion(audit.gradient_accuracy),
        "autoattack": _optional(audit.autoattack_accuracy),
        "autoattack_rand": _optional(audit.rand_accuracy),
        "autoattack_rand_one_forward": _optional(audit.rand_claim),
        "all_attacks": _proportion(audit.robust_accuracy),
        "gap": None
        if gap is None
        else {
            "estimate": gap.estimate,
            "low": gap.low,
            "high": gap.high,
            "excess": gap.excess,
            "placebo_only": gap.placebo_only,
            "p_value": gap.p_value,
            "looks": gap.looks,
        },
        "findings": [
            {
                "id": finding.id,
                "message": finding.message,
                "undermines_attacks": finding.undermines_attacks,
                "link": finding.link,
            }
            for finding in audit.findings
        ],
        "bypassed": list(audit.bypassed),
        "seconds": round(audit.seconds, 3),
        "provenance": dict(audit.provenance),
    }


def crash_to_json(test: str, defense: str, error: BaseException) -> dict[str, Any]:
    """An audit that raised instead of returning: inconclusive, with the error as its reason."""
    return {
        "test": test,
        "defense": defense,
        "verdict": Verdict.INCONCLUSIVE.name,
        "reasons": [f"the audit raised {type(error).__name__}: {error}"],
        "images": 0,
        "clean_accuracy": None,
        "robust_accuracy": {},
        "gap": None,
        "findings": [],
        "seconds": 0.0,
        "provenance": {},
    }


def write_json(file: Path, audits: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> None:
    """Write a run's audits in one atomic step, sorted by test, so that workers and order leave no mark."""
    content = {
        "version": VERSION,
        "provenance": dict(provenance),
        "audits": sorted(audits, key=lambda audit: (audit["test"], audit["defense"])),
    }
    with replaced(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def _proportion(share: Proportion) -> dict[str, Any]:
    return {"value": share.value, "low": share.low, "high": share.high, "count": share.count, "total": share.total}


def _optional(share: Proportion | None) -> dict[str, Any] | None:
    return None if share is None else _proportion(share)


def _attack(audit: Audit, name: str) -> dict[str, Any]:
    result = audit.attack(name)
    accuracy = (
        _proportion(audit.accuracy_under(name)) if result.status == "done" else dict.fromkeys(("value", "low", "high"))
    )
    return {
        **accuracy,
        "kind": result.kind,
        "status": result.status,
        "note": result.note,
        "attacked": len(result.attacked),
        "broken": len(result.broken),
        "broken_alone": audit.broken_alone(name),
        "invalid": result.invalid,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "seconds": round(result.seconds, 3),
    }
