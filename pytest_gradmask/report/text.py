"""Audits as tables of plain text: the attacks of one audit, and the audits of a run."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_gradmask.report.wording import SHOWN_VERDICTS, first_reason, shown_verdict
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Proportion

_INTERVAL = ("estimate", "low", "high")
#: The masking gap is in percentage points.
AUDIT_COLUMNS = ("verdict", "clean", "gradient", "all attacks", "gap, pp", "seconds", "test")
#: Audits in the summary of a run without -v.
_SHOWN = 20
#: Characters of a reason in that table.
_REASON = 300


def attack_table(audit: Audit) -> list[str]:
    """One line for each attack: its kind, how many images it was given and broke, the robust accuracy after it."""
    accuracy = "robust accuracy" if audit.exhaustive else "accuracy, at most"
    rows: list[Sequence[str]] = [("attack", "kind", "given", "broken", "alone", accuracy), _clean_row(audit)]
    for what, share in (("(none), rejected", audit.clean_rejected), ("(none), of accepted", audit.selective_accuracy)):
        if share is not None:
            rows.append((what, "", str(share.total), "", "", _bounded(share)))
    for result in audit.attacks:
        if result.status.startswith("skipped"):
            continue  # a note below the table names them
        if result.status == "done":
            figures = (
                str(len(result.attacked)),
                str(len(result.broken)),
                str(audit.broken_alone(result.name)),
                _bounded(audit.accuracy_under(result.name)),
            )
        else:
            figures = ("-", "-", "-", f"{result.status}: {result.note}"[:80])
        rows.append((result.name, result.kind, *figures))
    autoattack = audit.autoattack_accuracy
    if autoattack is not None:
        name = str(audit.provenance.get("autoattack", "AutoAttack"))
        rows.append((name, "both", str(audit.total), "", "", _bounded(autoattack)))
    for how, share in (
        ("over repeated forwards", audit.rand_accuracy),
        ("by one forward, its own rule", audit.rand_claim),
    ):
        if share is not None:
            rows.append((f"AutoAttack rand, {how}", "gradient", str(audit.total), "", "", _bounded(share)))
    rows.append(("all attacks", "", str(audit.total), "", "", _bounded(audit.robust_accuracy)))
    if audit.worst_draw_accuracy is not None:
        rows.append(("all attacks, no sample wrong", "", str(audit.total), "", "", _bounded(audit.worst_draw_accuracy)))
    return aligned(rows)


def attack_notes(audit: Audit) -> list[str]:
    """Sentences below the table of attacks: on rejected images, on what was not computed, and on forwards."""
    return [*_rejected(audit), *_skipped(audit), *_forwards(audit)]


def _bounded(share: Proportion) -> str:
    """A share with its bounds, short enough for a table in a terminal of 80 columns: ``22.2% [7.0, 45.8]``."""
    return f"{share.value:.1%} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _rejected(audit: Audit) -> list[str]:
    """How many perturbed images a defense with a reject option rejects."""
    counts = ", ".join(f"{result.rejected} of {result.name}" for result in audit.attacks if result.rejected)
    return [f"Rejected, and so not broken: {counts or 'no perturbed image'}."] if audit.rejected else []


def _skipped(audit: Audit) -> list[str]:
    """What an audit that is not exhaustive, or is from the cache, has not computed."""
    lines = []
    early = [result.name for result in audit.attacks if result.status == "skipped-early"]
    if early:
        lines.append(f"Skipped early, as the verdict was decided without them: {', '.join(early)}.")
    for why in dict.fromkeys(result.note for result in audit.attacks if result.status == "skipped"):
        names = [result.name for result in audit.attacks if result.status == "skipped" and result.note == why]
        lines.append(f"Skipped, as {why}: {', '.join(names)}.")
    if audit.total < audit.given:
        lines.append(
            f"Used {audit.total} of {audit.given} images, in random order, as the verdict was decided after them."
        )
    if not audit.exhaustive:
        lines.append(
            "Attacks got only images on which they could change the verdict, so accuracies are upper bounds. For those "
            "of every attack on every image, and AutoAttack's, audit with exhaustive=True."
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


def summary(run: Mapping[str, Any], *, every: bool, width: int | None = None) -> list[str]:
    """One line for each audit, worst verdicts first, and how many audits have each verdict.

    Args:
        run: in its JSON form, the only form that the controller of a distributed run has.
        every: whether to list more than 20 audits.
        width: of the terminal, in characters. Where a line of the table is longer, each test gets a line of its own.
            By default there is no limit, as in a file or the log of a CI job, where a line for each audit is easier
            to search.
    """
    audits = worst_first(run["audits"])
    shown = audits if every else audits[:_SHOWN]
    lines = [*_audit_table(shown, width), ""] if shown else []
    if len(audits) > len(shown):
        lines.insert(-1, f"... and {counted(audits[len(shown) :])} (-v lists every audit)")
    lines.append(f"{len(audits)} audit{'' if len(audits) == 1 else 's'}: {counted(audits) or 'none ran'}")
    if not run["complete"]:
        lines.append(f"The run is not complete: {why_partial(run)}.")
    return lines


def worst_first(audits: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Audits in their JSON form, ``MASKED`` before ``INCONCLUSIVE`` before ``NOT_MASKED``."""
    return sorted(audits, key=lambda audit: SHOWN_VERDICTS.index(shown_verdict(audit)))


def counted(audits: Sequence[Mapping[str, Any]]) -> str:
    """How many audits have each verdict: ``1 MASKED, 3 NOT_MASKED``; empty if there are no audits."""
    found = Counter(map(shown_verdict, audits))
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in SHOWN_VERDICTS if found[verdict])


def why_partial(run: Mapping[str, Any]) -> str:
    """A clause that says why a run, in its JSON form, is not complete, and what is missing."""
    missing = run["not_run"]
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    parts = [f"pytest ended with exit status {run['exit_status']}"]
    if missing:
        parts.append(f"{len(missing)} of the selected tests or files did not run ({named})")
    return ", ".join(parts)


def _audit_table(audits: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """The figures of each audit, from its JSON form, and its test. Without a verdict, its first reason follows."""
    header, *rows = tests_last([AUDIT_COLUMNS, *map(audit_row, audits)], width)
    for audit, lines in zip(audits, rows, strict=True):
        if audit["verdict"] == "INCONCLUSIVE":
            lines += fitted(f"  {textwrap.shorten(first_reason(audit), _REASON)}", width)
    return [line for lines in (header, *rows) for line in lines]


def tests_last(rows: Sequence[Sequence[str]], width: int | None) -> list[list[str]]:
    """The lines of each row of a table whose first row is its header, and whose last column names tests.

    Where a line would be longer than the width, every test gets a line of its own below its row.
    """
    whole = aligned(rows)
    if width is None or max(map(len, whole)) <= width:
        return [[line] for line in whole]
    header, *lines = aligned([row[:-1] for row in rows])
    tests = [f"  {shortened(row[-1], width - 2)}" for row in rows[1:]]
    return [[header], *([line, test] for line, test in zip(lines, tests, strict=True))]


def fitted(line: str, width: int | None) -> list[str]:
    """A sentence as lines of at most so many characters, all with its indent; as it is without a width.

    A word that is longer, such as the path of a file, stays whole.
    """
    if width is None or len(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.lstrip(), width, initial_indent=indent, subsequent_indent=indent or "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def shortened(name: str, width: int) -> str:
    """A name of at most so many characters: its middle is left out, as its two ends tell it from others."""
    if len(name) <= width:
        return name
    kept = max(width - len("..."), 2)
    return f"{name[: kept // 2]}...{name[-(kept - kept // 2) :]}"


def audit_row(audit: Mapping[str, Any]) -> tuple[str, ...]:
    """Verdict, accuracies, masking gap in percentage points, time and test of an audit in its JSON form."""
    gap = audit["gap"]
    gap_text = "-" if gap is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * gap[k] for k in _INTERVAL))
    shares = [audit[key] for key in ("clean_accuracy", "gradient_attacks", "all_attacks")]
    percents = ["-" if share is None else f"{share['value']:.1%}" for share in shares]
    seconds = "cached" if audit["cached"] else f"{audit['seconds']:.1f}"
    return (shown_verdict(audit), *percents, gap_text, seconds, audit["test"])


def _clean_row(audit: Audit) -> Sequence[str]:
    return ("(none)", "", str(audit.total), "", "", _bounded(audit.clean_accuracy))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
