"""Audits as plain text: the failure message and the summary after a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_gradmask.results import Audit, Verdict

_INTERVAL = ("estimate", "low", "high")

_NEXT_STEP = {
    Verdict.MASKED: (
        "The robust accuracy under gradient attacks is an artefact. Report the figure under the adaptive attacks, and "
        "look at what the findings and the strongest attack point to."
    ),
    Verdict.NOT_MASKED: "Gradient attacks and adaptive attacks agree: the robust accuracy can be reported as it is.",
    Verdict.INCONCLUSIVE: "This is no pass. Settle it with --gradmask-budget=ci or full and --gradmask-data.",
}


def explain(audit: Audit, expected: str) -> str:
    """Why an audit is not what was expected: verdict, reasons, findings, a table of attacks, the next step."""
    lines = [f"expected {expected}, but the verdict on {audit.defense} is {audit.verdict.name}", ""]
    lines += [f"  {reason}" for reason in audit.reasons]
    lines += ["", *attack_table(audit), ""]
    if audit.gap is not None:
        lines.append(f"masking gap beyond the placebo: {audit.gap} at {audit.confidence:.0%} confidence")
    if audit.bypassed:
        lines.append(f"bypassed by BPDA: {', '.join(audit.bypassed)}")
    lines += [f"finding {finding.id}: {finding.message} ({finding.link})" for finding in audit.findings]
    lines += ["", _NEXT_STEP[audit.verdict]]
    return "\n".join(lines)


def attack_table(audit: Audit) -> list[str]:
    """One line an attack: kind, images it was given and broke, robust accuracy once it has run."""
    rows: list[Sequence[str]] = [("attack", "kind", "given", "broken", "alone", "robust accuracy"), _clean_row(audit)]
    for result in audit.attacks:
        if result.status == "done":
            figures = (
                str(len(result.attacked)),
                str(len(result.broken)),
                str(audit.broken_alone(result.name)),
                str(audit.accuracy_under(result.name)),
            )
        else:
            figures = ("-", "-", "-", f"{result.status}: {result.note}"[:80])
        rows.append((result.name, result.kind, *figures))
    autoattack = audit.autoattack_accuracy
    if autoattack is not None:
        name = str(audit.provenance.get("autoattack", "AutoAttack"))
        rows.append((name, "both", str(audit.total), "", "", str(autoattack)))
    rows.append(("all attacks", "", str(audit.total), "", "", str(audit.robust_accuracy)))
    return _aligned(rows)


def summary(audits: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line an audit, from its JSON form: the controller of a distributed run has no other."""
    rows: list[Sequence[str]] = [("verdict", "clean", "gradient", "all attacks", "gap", "seconds", "test")]
    for audit in audits:
        gap = audit["gap"]
        points = "-" if gap is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * gap[k] for k in _INTERVAL))
        shares = [audit.get(key) for key in ("clean_accuracy", "gradient_attacks", "all_attacks")]
        percents = ["-" if share is None else f"{share['value']:.1%}" for share in shares]
        rows.append((audit["verdict"], *percents, points, f"{audit['seconds']:.1f}", audit["test"]))
    return _aligned(rows)


def _clean_row(audit: Audit) -> Sequence[str]:
    return ("(none)", "", str(audit.total), "", "", str(audit.clean_accuracy))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
