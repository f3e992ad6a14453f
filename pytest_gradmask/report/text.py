"""Audits as plain text: the failure message and the summary after a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_gradmask.printable import printable
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.interim import attempt_share
from pytest_gradmask.verdict.results import Verdict

if TYPE_CHECKING:  # a summary needs no torch
    from pytest_gradmask.binarization.run import BinarizationTest

_INTERVAL = ("estimate", "low", "high")
#: The masking gap is in percentage points.
AUDIT_COLUMNS = ("verdict", "clean", "gradient", "all attacks", "gap, pp", "seconds", "test")
_WORST_FIRST = [verdict.name for verdict in (Verdict.MASKED, Verdict.INCONCLUSIVE, Verdict.NOT_MASKED)]
#: Audits in the summary of a run without -v.
_SHOWN = 20

_NEXT_STEP = {
    Verdict.MASKED: (
        "The robust accuracy under gradient attacks is an artefact. Report the figure under the adaptive attacks. The "
        "findings and the strongest attack show what hides the gradient."
    ),
    Verdict.NOT_MASKED: "Gradient attacks and adaptive attacks agree: the robust accuracy can be reported as it is.",
}


def explain(audit: Audit, expected: str) -> str:
    """Why an audit is not as expected: verdict, reasons, a table of attacks, findings, the next step."""
    lines = [f"expected {expected}, but the verdict on {audit.defense} is {audit.verdict.name}", ""]
    lines += [f"  {reason}" for reason in audit.reasons]
    lines += ["", *attack_table(audit), ""]
    if audit.gap is not None:
        lines.append(f"masking gap beyond the placebo: {audit.gap} at {audit.confidence:.0%} confidence")
    if audit.operations:
        hides = any(finding.id == "hidden-gradient" for finding in audit.findings)
        how = "hidden by" if hides else "operations with a natural gradient in place of their own"
        lines.append(f"{how}: {', '.join(map(str, audit.operations))}")
    if audit.attempt > 1:
        lines.append(
            f"attempt {audit.attempt}: all audits of this defense share the error, and this one has "
            f"{attempt_share(audit.attempt):.2g} of it (docs/statistics.md#repeated-audits)"
        )
    if audit.earlier >= audit.attempt:
        lines.append(
            f"not the first: the cache knows {audit.earlier} earlier audits of this defense. The confidence is that of "
            f"this one alone; with --gradmask-attempt={audit.earlier + 1} it holds for all of them together "
            "(docs/statistics.md#repeated-audits)"
        )
    if audit.bypassed:
        lines.append(f"bypassed: {', '.join(audit.bypassed)}")
    lines += [f"finding {finding.id}: {finding.message} ({finding.link})" for finding in audit.findings]
    lines += ["", _NEXT_STEP.get(audit.verdict) or _go_on(audit)]
    return printable("\n".join(lines))


def _go_on(audit: Audit) -> str:
    """How to go on after an ``INCONCLUSIVE`` audit, so that all audits together keep the error of one."""
    step = "This does not pass. More images may decide it: use --gradmask-budget=ci or full, and --gradmask-data."
    if audit.gap is None:
        return step
    samples = "" if audit.images_needed is None else f"--gradmask-samples={audit.images_needed} "
    return (
        f"{step} Add {samples}--gradmask-attempt={audit.next_attempt}: every further audit of this defense is another "
        "chance of a wrong verdict, so it gets a smaller share of the error."
    )


def explain_binarization_test(result: BinarizationTest, attack: str, defense: str) -> str:
    """Why an attack does not pass the binarization test on a defense: what it found, with bounds, and the next step."""
    lines = [f"expected {attack} to pass the binarization test on {defense}, but {_found(result)}", ""]
    lines.append(
        "  For each image, a new last layer was fitted for which an adversarial example inside the ball is known."
    )
    total = len(result.outcomes)
    if result.trivial:
        lines.append(
            f"  {result.trivial} of {total} images do not count: random points find an adversarial example, too."
        )
    if result.unseparable:
        lines.append(
            f"  {result.unseparable} of {total} images do not count: no adversarial example could be embedded, as no "
            "last layer separates the features at the boundary of the ball from those inside."
        )
    if result.invalid:
        lines.append(
            f"  {result.invalid} of {total} returned images were outside of the ball or the bounds, or not finite."
        )
    if result.fails:
        step = (
            f"A robust accuracy under {attack} means nothing on this defense: if the attack finds no adversarial "
            "example, there may be one nevertheless. Adapt the attack: use BPDA around what hides the gradient "
            "(through=bypassed(...)), more forwards a step (eot=) on a randomized defense, another loss if logits "
            "saturate (loss=logit_margin), or more steps."
        )
    elif result.tested == 0:
        step = "The test shows nothing. Check eps, gap and what the defense does to noise, or try other images."
    else:
        step = f"This does not pass, and it does not prove a failure. More than {total} images may decide it."
    return printable("\n".join([*lines, "", step]))


def _found(result: BinarizationTest) -> str:
    if result.rate is None:
        return f"none of the {len(result.outcomes)} images can be used for it"
    return (
        f"it found {result.passed} of {result.tested} embedded adversarial examples: {result.rate} at "
        f"{result.confidence:.0%} confidence"
    )


def attack_table(audit: Audit) -> list[str]:
    """One line for each attack: its kind, how many images it was given and broke, the robust accuracy after it."""
    rows: list[Sequence[str]] = [("attack", "kind", "given", "broken", "alone", "robust accuracy"), _clean_row(audit)]
    for what, share in (("(none), rejected", audit.clean_rejected), ("(none), of accepted", audit.selective_accuracy)):
        if share is not None:
            rows.append((what, "", str(share.total), "", "", str(share)))
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
    for how, share in (
        ("over repeated forwards", audit.rand_accuracy),
        ("by one forward, its own rule", audit.rand_claim),
    ):
        if share is not None:
            rows.append((f"AutoAttack rand, {how}", "gradient", str(audit.total), "", "", str(share)))
    rows.append(("all attacks", "", str(audit.total), "", "", str(audit.robust_accuracy)))
    return [*aligned(rows), *_rejected(audit), *_skipped(audit), *_forwards(audit)]


def _rejected(audit: Audit) -> list[str]:
    """How many perturbed images a defense with a reject option rejects."""
    counts = ", ".join(f"{result.rejected} of {result.name}" for result in audit.attacks if result.rejected)
    return [f"Rejected, and so not broken: {counts or 'no perturbed image'}."] if audit.rejected else []


def _skipped(audit: Audit) -> list[str]:
    """What an audit that is not exhaustive, or is from the cache, has not computed."""
    lines = []
    if audit.total < audit.given:
        lines.append(
            f"Used {audit.total} of {audit.given} images, in random order, as the verdict was decided after them."
        )
    if not audit.exhaustive and any(result.name == "pgd" for result in audit.attacks):
        lines.append(
            "AutoAttack's attacks got only images that survive pgd. For the figure of AutoAttack itself, audit with "
            "exhaustive=True."
        )
    if audit.cached:
        lines.append("From the cache, as nothing it depends on has changed. To audit anew, use --gradmask-no-cache.")
    return lines


def _forwards(audit: Audit) -> list[str]:
    """How many forwards the accuracies of a randomized defense are from."""
    if not audit.predictions:
        return []
    numbers = [predictions.number for result in audit.attacks for predictions in result.predictions.values()]
    if not any(numbers):
        return [
            "Randomized: the chances of a correct prediction are exact, computed from the members and their weights."
        ]
    return [
        "Randomized: accuracies are mean chances of a correct prediction, estimated from "
        f"{min(numbers)} to {max(numbers)} forwards of each image at each point."
    ]


def summary(run: Mapping[str, Any], *, every: bool) -> list[str]:
    """One line for each audit, worst verdicts first, and how many audits have each verdict.

    Args:
        run: in its JSON form, the only form that the controller of a distributed run has.
        every: whether to list more than 20 audits.
    """
    audits = worst_first(run["audits"])
    shown = audits if every else audits[:_SHOWN]
    lines = [*audit_table(shown), ""] if shown else []
    if len(audits) > len(shown):
        lines.insert(-1, f"... and {counted(audits[len(shown) :])} (-v lists every audit)")
    lines.append(f"{len(audits)} audit{'' if len(audits) == 1 else 's'}: {counted(audits) or 'none ran'}")
    if not run["complete"]:
        lines.append(f"The run is not complete: {why_partial(run)}.")
    return lines


def worst_first(audits: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Audits in their JSON form, ``MASKED`` before ``INCONCLUSIVE`` before ``NOT_MASKED``."""
    return sorted(audits, key=lambda audit: _WORST_FIRST.index(audit["verdict"]))


def counted(audits: Sequence[Mapping[str, Any]]) -> str:
    """How many audits have each verdict: ``1 MASKED, 3 NOT_MASKED``; empty if there are no audits."""
    found = Counter(audit["verdict"] for audit in audits)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in _WORST_FIRST if found[verdict])


def why_partial(run: Mapping[str, Any]) -> str:
    """A clause that says why a run, in its JSON form, is not complete, and what is missing."""
    missing = run["not_run"]
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    parts = [f"pytest ended with exit status {run['exit_status']}"]
    if missing:
        parts.append(f"{len(missing)} of the selected tests or files did not run ({named})")
    return ", ".join(parts)


def audit_table(audits: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each audit, from its JSON form."""
    return aligned([AUDIT_COLUMNS, *map(audit_row, audits)])


def audit_row(audit: Mapping[str, Any]) -> tuple[str, ...]:
    """Verdict, accuracies, masking gap in percentage points, time and test of an audit in its JSON form."""
    gap = audit["gap"]
    gap_text = "-" if gap is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * gap[k] for k in _INTERVAL))
    shares = [audit[key] for key in ("clean_accuracy", "gradient_attacks", "all_attacks")]
    percents = ["-" if share is None else f"{share['value']:.1%}" for share in shares]
    seconds = "cached" if audit["cached"] else f"{audit['seconds']:.1f}"
    return (audit["verdict"], *percents, gap_text, seconds, audit["test"])


def _clean_row(audit: Audit) -> Sequence[str]:
    return ("(none)", "", str(audit.total), "", "", str(audit.clean_accuracy))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
