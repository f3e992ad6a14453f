"""Audits as plain text: the failure message and the summary after a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_gradmask.results import Audit, Verdict

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
    lines += [f"finding {finding.id}: {finding.message}" for finding in audit.findings]
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


def summary(audits: Iterable[Audit]) -> list[str]:
    """One line an audit."""
    rows: list[Sequence[str]] = [("verdict", "clean", "gradient", "all attacks", "gap", "seconds", "test")]
    rows += [
        (
            audit.verdict.name,
            f"{audit.clean_accuracy.value:.1%}",
            f"{audit.gradient_accuracy.value:.1%}",
            f"{audit.robust_accuracy.value:.1%}",
            str(audit.gap) if audit.gap is not None else "-",
            f"{audit.seconds:.1f}",
            audit.test or audit.defense,
        )
        for audit in audits
    ]
    return _aligned(rows)


def _clean_row(audit: Audit) -> Sequence[str]:
    return ("(none)", "", str(audit.total), "", "", str(audit.clean_accuracy))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
