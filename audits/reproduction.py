"""``python -m audits.reproduction``: docs/reproduction.md and its pictures, from stored results.

These are in `audits/results` (the audits of the claims) and `audits/trained_masks/results` (trained front ends).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from audits.claims import CLAIMS, Record, stored
from audits.markdown import share, table
from audits.short import figures_differ, pgd_fails, shortened
from audits.trained_masks.claims import records as trained_records
from audits.trained_masks.evidence import Evidence, Measured, bounded, load

DOCS = Path(__file__).parent.parent / "docs"
HERE = Path(__file__).parent

#: Columns of a table of audits: key of an accuracy, and its heading.
_COLUMNS = {
    "clean": "clean",
    "gradient": "gradient attacks (in sweeps PGD-20)",
    "square": "Square",
    "zero-order": "zero-order",
    "bpda": "BPDA",
    "autoattack": "AutoAttack's attacks",
}


def markdown(audits: Sequence[Record], evidence: Evidence) -> str:
    """The page: what did not reproduce, a table of all claims, a section for each, and all trainings.

    Args:
        audits: what the audits of the claims stored.
        evidence: what the trainings of front ends stored.
    """
    own = [*audits, *figures_differ(audits), *trained_records(evidence)]
    sections = [_section(number, [record for record in own if record["claim"] == number]) for number in CLAIMS]
    overview = [_row(number, about(number, own)) for number in CLAIMS]
    headings = ["", "claim or question", "paper", "ours, with bounds", "images", "verdict", "regenerate"]
    tried = evidence.all()
    parts = {
        "tried": _tried(tried),
        "tried at the paper's depth": _tried([run for run in tried if run.recipe.depth == _PAPER_DEPTH]),
        "longest at the paper's depth": f"{evidence.longest(depth=_PAPER_DEPTH):.0%}".replace("%", " %"),
        "overview": table(headings, overview),
        "sections": "\n\n".join(filter(None, sections)),
        "gain and mask": _gain_and_mask(tried),
    }
    return filled((HERE / "reproduction-template.md").read_text(), evidence, parts)


def about(number: str, records: Sequence[Record]) -> list[Record]:
    """The records of a claim or question, and those of the claims that it shares."""
    return [record for claim in (number, *CLAIMS[number].shares) for record in records if record["claim"] == claim]


def filled(text: str, evidence: Evidence, parts: Mapping[str, str]) -> str:
    """The text, with ``{part}`` replaced by it and ``{run:attack}`` by the accuracy of its last measurement.

    Raises:
        KeyError: there is no such part or run.
    """

    def figure(found: re.Match[str]) -> str:
        name, _, attack = found[1].partition(":")
        return bounded(getattr(evidence.last(name), attack)) if attack else parts[name]

    return re.sub(r"\{([^{}\n]+)\}", figure, text)


def verdict(record: Record) -> str:
    """Of one record: reproduced, not reproduced, contradicted, or the answer of a question."""
    if "verdict" in record:
        return str(record["verdict"])
    if pgd_fails(record):
        return "contradicted"
    if CLAIMS[record["claim"]].question:
        return f"answered: {'yes' if record['holds'] else 'no'}"
    return "reproduced" if record["holds"] else "not reproduced"


def outcome(number: str, records: Sequence[Record]) -> str:
    """The verdict over all records of a claim, with counts where they differ."""
    if CLAIMS[number].answer and records:
        return f"answered: {CLAIMS[number].answer}"
    counts = Counter(verdict(record) for record in records)
    if len(counts) < 2:
        return next(iter(counts), "not measured")
    first, *others = counts.most_common()
    parts = [f"{first[0]} in {first[1]} of {len(records)} cases"]
    return ", ".join([*parts, *(f"{found.removeprefix('answered: ')} in {count}" for found, count in others)])


def _row(number: str, records: Sequence[Record]) -> list[str]:
    claim = CLAIMS[number]
    own = [record for record in records if record["claim"] == number]
    shown = _shown(own or records)
    ours = [shortened(record) for record in shown]
    if hidden := len(own or records) - len(shown):
        ours.append(f"{hidden} more case{'s' * (hidden > 1)} [below](#{_anchor(number)})")
    if own:
        ours += [f"and as {_link(other)}" for other in claim.shares]
    return [
        f"[{number}](#{_anchor(number)})",
        claim.text,
        claim.paper,
        "<br>".join(ours),
        " or ".join(str(count) for count in sorted({count for record in shown for count in _images(record)})),
        f"**{outcome(number, own or records)}**",
        "<br>".join(f"`{command}`" for command in _all_commands(shown)),
    ]


def _shown(records: Sequence[Record]) -> list[Record]:
    """Of each verdict, the record with the most images."""
    of_verdict: dict[str, Record] = {}
    for record in sorted(records, key=lambda each: max(_images(each)), reverse=True):
        of_verdict.setdefault(verdict(record), record)
    return list(of_verdict.values())


def _images(record: Record) -> list[int]:
    return record["images"] if isinstance(record["images"], list) else [record["images"]]


def commands(record: Record) -> list[str]:
    """What measures a record anew."""
    if "commands" in record:
        return list(record["commands"])
    test = record["test"].partition("::")[0]
    return [f"pytest {test} OPTIONS --store-claims=audits/results/{record.get('file', 'FILE')}"]


def _all_commands(records: Iterable[Record]) -> list[str]:
    """Those of several records, each once."""
    return list(dict.fromkeys(command for record in records for command in commands(record)))


def _tried(runs: Sequence[Measured]) -> str:
    headings = [
        "front end",
        "backbone",
        "training",
        "steps of an epoch",
        "images",
        "mask",
        *_TRIED_ATTACKS,
        "residual SD",
        "gain",
    ]
    return table(
        headings,
        (
            [
                run.front_end, f"`{run.recipe.backbone}`", run.training, f"{run.step:,} of {run.total:,}",
                str(run.clean.total), "**yes**" if run.masked else "no",
                *(bounded(found) for found in (run.clean, run.pgd, run.bpda)),
                f"{run.residual_sd:.3f}", f"{run.gain:.2g}" if run.gain < 100 else f"{run.gain:.0f}",
            ]
            for run in runs
        ),
    )  # fmt: skip


def _gain_and_mask(runs: Sequence[Measured]) -> str:
    """How the gain of the residual and the mask go together, in words."""
    order = spearmanr([run.gain for run in runs], [run.hidden for run in runs]).statistic
    without = max(run.gain for run in runs if run.hidden < _HARDLY)
    complete = min(run.gain for run in runs if run.hidden > 1 - _HARDLY)
    return (
        f"over the {len(runs)} trainings the rank correlation of both is {order:.2f}. All whose mask hides less than "
        f"{_HARDLY:.0%} have a gain of at most {without:.2g}, and all that hide more than {1 - _HARDLY:.0%} one of at "
        f"least {complete:.2g}"
    ).replace("%", " %")


#: The convolutions of the paper's front end.
_PAPER_DEPTH = 17
#: Of what BPDA breaks: what a mask hides from PGD that hardly is one, and what one lacks that is nearly complete.
_HARDLY = 0.15
_TRIED_ATTACKS = ("clean", "PGD-10", "BPDA-10")


def _anchor(number: str) -> str:
    return _heading(number).lower().replace(" ", "-")


def _link(number: str) -> str:
    return f"[{_heading(number)}](#{_anchor(number)})"


def _heading(number: str) -> str:
    if len(number) > 1:
        return _capital(number)
    return f"{'Claim' if number.isdigit() else 'Question'} {number}"


def _case(record: Record) -> str:
    """The parameter of a test with several cases."""
    found = re.search(r"\[(.+)\]$", record.get("test", "")) if "verdict" not in record else None
    return f"{found[1]}: " if found else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _section(number: str, records: Sequence[Record]) -> str:
    claim = CLAIMS[number]
    if not records and not claim.shares:
        return ""
    parts = [
        f"## {_heading(number)}",
        claim.text if claim.text.endswith("?") else f"{claim.text}.",
        f"*Paper*: {claim.paper}.",
    ]
    if records:
        parts.append(f"*Here*: {outcome(number, records)}.")
    parts.append("\n".join(f"- {_capital(verdict(record))}: {_case(record)}{record['ours']}." for record in records))
    audits = [record for record in records if "details" in record]
    parts += [_audit_table(_audits(audits)), _share_table(audits)]
    runs = {(run.recipe.name, run.step): run for record in records for run in record.get("runs", [])}
    parts.append(_tried(list(runs.values())) if runs else "")
    if (DOCS / "figures" / f"claim-{number}.svg").exists():
        parts.append(f"![{claim.text}](figures/claim-{number}.svg)")
    if claim.shares:
        parts.append(f"Figures are {'also ' if records else ''}those of {', '.join(map(_link, claim.shares))}.")
    again = "\n".join(_all_commands(records))
    parts += [claim.explanation, f"To measure it again:\n\n```sh\n{again}\n```" if again else "", _provenance(records)]
    return "\n\n".join(filter(None, parts))


def _audits(records: Iterable[Record]) -> list[Mapping[str, Any]]:
    found = []
    for record in records:
        found += [*record["details"].get("audits", []), *record["details"].get("cells", [])]
    return found


def _audit_table(audits: Sequence[Mapping[str, Any]]) -> str:
    if not audits:
        return ""
    columns = {key: name for key, name in _COLUMNS.items() if any(key in audit["accuracies"] for audit in audits)}
    lines = [f"| defense | verdict | {' | '.join(columns.values())} |", "| --- " * (len(columns) + 2) + "|"]
    for audit in audits:
        cells = [share(audit["accuracies"].get(key)) for key in columns]
        lines.append(f"| {audit['defense']} | {_judged(audit)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _judged(audit: Mapping[str, Any]) -> str:
    if "verdict" in audit:
        return f"`{audit['verdict']}`"
    return "masked" if audit["masked"] else "not masked"


def _share_table(records: Sequence[Record]) -> str:
    rows = [row for record in records for row in record["details"].get("accuracies", {}).items()]
    if not rows:
        return ""
    return "\n".join(["| | accuracy |", "| --- | --- |", *(f"| {name} | {share(found)} |" for name, found in rows)])


def _provenance(records: Sequence[Record]) -> str:
    texts = dict.fromkeys(
        f"{' or '.join(map(str, _images(record)))} images of {record['data'] or 'a test set that was not noted'}, "
        f"{'budget ' + record['budget'] if 'budget' in record else 'PGD-10 and BPDA-10'}, "
        f"seed {record['seed'] or 0}, "
        + (", ".join(f"{name} {number}" for name, number in record["versions"].items()) or "versions not noted")
        for record in records
    )
    return "\n\n".join(f"<sub>Measured on {text}.</sub>" for text in texts)


def main() -> None:
    """Draw the pictures, then write the page that shows them."""
    from audits.pictures import draw, draw_gains

    audits, evidence = stored(), load()
    draw(audits, DOCS / "figures")
    draw_gains([(run.gain, run.hidden, run.recipe.depth) for run in evidence.all()], DOCS / "figures" / "gain.svg")
    (DOCS / "reproduction.md").write_text(markdown(audits, evidence))


if __name__ == "__main__":
    main()
