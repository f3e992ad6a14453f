"""Audits as JSON: one object an audit, and the file that holds those of a run. ``schema.json`` describes both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytest_gradmask.errors import AuditTimeoutError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.transfer.matrix import TransferMatrix
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Proportion, Verdict, chances

#: The published schema of the file: JSON Schema, draft 2020-12.
SCHEMA: Mapping[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
#: Raised, in the schema, when a field changes its meaning or goes away.
VERSION: int = SCHEMA["properties"]["version"]["const"]

_SHARE = ("value", "low", "high", "count", "total")
#: Version 1 had other words for the same things.
_STATUS_1 = {"spared": "skipped-early"}
_FINDING_1 = {"attack-fails-unit-test": "attack-fails-binarization-test"}
#: An array of numbers alone, as `json.dumps` breaks it into lines. No string holds a bare line break.
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]+\]")


def to_json(audit: Audit) -> dict[str, Any]:
    """One audit as plain data. Accuracies are shares of images with exact one-sided bounds."""
    gap = audit.gap
    return {
        "test": audit.test,
        "defense": audit.defense,
        "verdict": audit.verdict.name,
        "expected": None,
        "error": None,
        "reasons": list(audit.reasons),
        "images": audit.total,
        "images_given": audit.given,
        "exhaustive": audit.exhaustive,
        "attempt": audit.attempt,
        "earlier_audits": audit.earlier,
        "cached": audit.cached,
        "images_needed": audit.images_needed,
        "margin": audit.margin,
        "confidence": audit.confidence,
        "clean_accuracy": _proportion(audit.clean_accuracy),
        "clean_rejected": _optional(audit.clean_rejected),
        "selective_accuracy": _optional(audit.selective_accuracy),
        "robust_accuracy": {result.name: _attack(audit, result.name) for result in audit.attacks},
        "gradient_attacks": _optional(audit.gradient_accuracy if audit.has_gradient else None),
        "autoattack": _optional(audit.autoattack_accuracy),
        "autoattack_rand": _optional(audit.rand_accuracy),
        "autoattack_rand_one_forward": _optional(audit.rand_claim),
        "all_attacks": _proportion(audit.robust_accuracy),
        "all_attacks_worst_draw": _optional(audit.worst_draw_accuracy),
        "gap": None
        if gap is None
        else {
            "estimate": gap.estimate,
            "low": gap.low,
            "high": gap.high,
            "low_level": gap.low_level,
            "high_level": gap.high_level,
            "excess": gap.excess,
            "placebo_only": gap.placebo_only,
            "p_value": gap.p_value,
            "analyses": gap.analyses,
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
        "operations": [asdict(operation) for operation in audit.operations],
        "per_image": {
            "index": list(audit.images),
            "clean": _plain(chances(audit.clean, audit.predictions, [])),
            "robust": _plain(chances(audit.clean, audit.predictions, audit.attacks)),
        },
        "seconds": round(audit.seconds, 3),
        "provenance": {"reproduce": "", **audit.provenance},
    }


def crash_to_json(test: str, defense: str, error: BaseException) -> dict[str, Any]:
    """An audit that raised instead of returning: inconclusive, with the error as its reason.

    An audit that exceeded its time limit, or that another plugin stopped, might have found something. It counts as one
    without enough evidence, and not as one in error.
    """
    stopped = isinstance(error, AuditTimeoutError) or not isinstance(error, (Exception, SystemExit))
    return {
        "test": test,
        "defense": defense,
        "verdict": Verdict.INCONCLUSIVE.name,
        "expected": None,
        "error": None if stopped else type(error).__name__,
        "reasons": [f"the audit raised {type(error).__name__}: {error}"],
        "images": 0,
        "images_given": 0,
        "exhaustive": False,
        "attempt": None,
        "earlier_audits": 0,
        "cached": False,
        "images_needed": None,
        "margin": None,
        "confidence": None,
        "clean_accuracy": None,
        "clean_rejected": None,
        "selective_accuracy": None,
        "robust_accuracy": {},
        "gradient_attacks": None,
        "autoattack": None,
        "autoattack_rand": None,
        "autoattack_rand_one_forward": None,
        "all_attacks": None,
        "all_attacks_worst_draw": None,
        "gap": None,
        "findings": [],
        "bypassed": [],
        "operations": [],
        "per_image": {"index": [], "clean": [], "robust": []},
        "seconds": 0.0,
        "provenance": {},
    }


def transfer_to_json(test: str, matrix: TransferMatrix) -> dict[str, Any]:
    """A transfer matrix as plain data: for each pair, the share of the common images that is fooled."""
    names = matrix.names
    return {
        "test": test,
        "attack": matrix.attack,
        "names": list(names),
        "clean_accuracy": [_proportion(matrix.clean_accuracy(name)) for name in names],
        "fooled": [[_proportion(matrix.fooled(source, target)) for target in names] for source in names],
        "images": matrix.total,
        "common": len(matrix.common),
        "diversity": _optional(matrix.diversity),
        "confidence": matrix.confidence,
        "threat": {"norm": matrix.threat.norm, "eps": matrix.threat.eps, "bounds": list(matrix.threat.bounds)},
        "bypassed": [list(some) for some in matrix.bypassed],
    }


def document(
    audits: Iterable[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    *,
    complete: bool = True,
    exit_status: int = 0,
    not_run: Sequence[str] = (),
) -> dict[str, Any]:
    """A run as plain data, sorted by test, so that workers and order leave no mark.

    Args:
        audits: each as of `to_json` or `crash_to_json`; those of one test in the order in which it made them.
        provenance: of the run.
        complete: whether pytest reached its end, and every test that was to audit ran.
        exit_status: of pytest.
        not_run: tests that were to audit and did not, and files that could not be collected.
    """
    return {
        "version": VERSION,
        "complete": complete,
        "exit_status": exit_status,
        "not_run": list(not_run),
        "provenance": dict(provenance),
        "audits": sorted(audits, key=lambda audit: audit["test"]),
    }


def upgraded(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run of an earlier version of the schema, in the words of this one. Fields that it did not have are missing.

    Raises:
        KeyError, TypeError, AttributeError: it is no run.
    """
    if run["version"] != 1:
        return dict(run)
    return {**run, "version": VERSION, "audits": [_upgraded(audit) for audit in run["audits"]]}


def _upgraded(audit: Mapping[str, Any]) -> dict[str, Any]:
    gap, attacks = audit["gap"], audit["robust_accuracy"]
    return {
        **audit,
        "gap": gap and {{"looks": "analyses"}.get(key, key): value for key, value in gap.items()},
        "robust_accuracy": {
            name: {**attack, "status": _STATUS_1.get(attack["status"], attack["status"])}
            for name, attack in attacks.items()
        },
        "findings": [{**finding, "id": _FINDING_1.get(finding["id"], finding["id"])} for finding in audit["findings"]],
    }


def write_json(file: Path, run: Mapping[str, Any]) -> None:
    """Write a run (`document`) in one atomic step, arrays of numbers on one line each."""
    text = json.dumps(run, indent=2)
    with replaced(file) as part:
        part.write_text(_NUMBERS.sub(lambda numbers: " ".join(numbers[0].split()), text) + "\n", encoding="utf-8")


def _plain(numbers: Iterable[float]) -> list[float]:
    """Whole numbers without a decimal point."""
    return [int(number) if number in (0, 1) else round(number, 6) for number in numbers]


def _proportion(share: Proportion) -> dict[str, Any]:
    return {key: getattr(share, key) for key in _SHARE}


def _optional(share: Proportion | None) -> dict[str, Any] | None:
    return None if share is None else _proportion(share)


def _attack(audit: Audit, name: str) -> dict[str, Any]:
    result = audit.attack(name)
    done = result.status == "done"
    return {
        **(_proportion(audit.accuracy_under(name)) if done else dict.fromkeys(_SHARE)),
        "kind": result.kind,
        "access": result.access,
        "status": result.status,
        "note": result.note,
        "attacked": len(result.attacked),
        "broken": len(result.broken),
        "broken_alone": audit.broken_alone(name),
        "invalid": result.invalid,
        "rejected": result.rejected,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "seconds": round(result.seconds, 3),
    }
