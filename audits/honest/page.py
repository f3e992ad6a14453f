"""The tables of docs/limits.md about honest models, from the records of ``python -m audits.honest measure``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from audits.honest.measurement import Record
from audits.honest.models import NUMBER
from audits.markdown import table
from pytest_gradmask.auditing.research import clopper_pearson

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
BEGIN = "<!-- made by: python -m audits.honest page -->"
END = "<!-- end -->"
_VERDICTS = ("NOT_MASKED", "INCONCLUSIVE", "MASKED")
_PROPERTIES = ("network", "training", "scale", "precision", "wrapper", "threat")


def write(records: Mapping[str, Record]) -> None:
    """Write the tables between their two marks in the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{markdown(records)}\n\n{END}{after}")


def markdown(records: Mapping[str, Record]) -> str:
    """The tables as Markdown."""
    every = list(records.values())
    if not every:
        return "No model is measured yet."
    done = [record for record in every if "verdict" in record]
    raised = [record for record in every if "error" in record]
    counts = Counter(record["verdict"] for record in done)
    images = sorted({record["images"] for record in done})
    budgets = sorted({record["budget"] for record in done})
    parts = [
        f"{len(every)} of {NUMBER} models are measured, with {' or '.join(map(str, images))} images each and the "
        f"budget {', '.join(f'`{budget}`' for budget in budgets)}. {len(raised)} of them raised an error.",
        table(["verdict", "models"], ([f"`{verdict}`", str(counts[verdict])] for verdict in _VERDICTS)),
        "### False alarms of each finding",
        "The bound is the upper one of Clopper and Pearson at 99 %. A finding that was never raised is not in the "
        f"table. Its bound is {_bound(0, len(done))}. Findings that refuse `NOT_MASKED` come first. Others only "
        "inform, and are often true of a model without masking: logits that were scaled by 10 do saturate.",
        table(["finding", "refuses `NOT_MASKED`", "models", "share", "bound"], _alarms(done)),
        "### Verdicts by property",
        table(
            ["property", "value", "models", *(f"`{verdict}`" for verdict in _VERDICTS), "refused"], _by_property(done)
        ),
        "*Refused* counts models with a finding that refuses `NOT_MASKED`. With so few images, the verdict may also be "
        "`INCONCLUSIVE` for want of images, or where gradient attacks have not converged.",
        *_refused(done),
    ]
    return "\n\n".join(parts)


def _alarms(done: list[Record]) -> Iterable[list[str]]:
    raised = Counter(finding for record in done for finding in record["findings"])
    refusing = Counter(finding for record in done for finding in set(record["undermining"]))
    for finding in sorted(raised, key=lambda each: (each not in refusing, each)):
        count = raised[finding]
        yield [
            f"[{finding}](findings.md#{finding})",
            "yes" if finding in refusing else "",
            f"{count} of {len(done)}",
            f"{count / len(done):.1%}",
            _bound(count, len(done)),
        ]


def _bound(count: int, total: int) -> str:
    return f"{clopper_pearson(count, total, 0.99)[1]:.1%}" if total else "-"


def _by_property(done: list[Record]) -> Iterable[list[str]]:
    for name in _PROPERTIES:
        values: dict[Any, list[Record]] = {}
        for record in done:
            values.setdefault(record[name], []).append(record)
        for value in sorted(values, key=str):
            some = values[value]
            counts = Counter(record["verdict"] for record in some)
            refused = sum(bool(record["undermining"]) for record in some)
            yield [name, str(value), str(len(some)), *(str(counts[verdict]) for verdict in _VERDICTS), str(refused)]


def _refused(done: list[Record]) -> list[str]:
    """The models that a finding refuses, one by one."""
    rows = [[record["name"], ", ".join(sorted(set(record["undermining"])))] for record in done if record["undermining"]]
    return ["### Models that a finding refuses", table(["model", "findings"], rows)] if rows else []
