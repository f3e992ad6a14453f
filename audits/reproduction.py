"""``python -m audits.reproduction``: docs/reproduction.md and its pictures, from the results in audits/results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audits.claims import CLAIMS, RESULTS

DOCS = Path(__file__).parent.parent / "docs"
HERE = Path(__file__).parent

Record = Mapping[str, Any]

#: Columns of a table of audits: key of an accuracy, and its heading.
_COLUMNS = {
    "clean": "clean",
    "gradient": "gradient attacks (in sweeps PGD-20)",
    "square": "Square",
    "zero-order": "zero-order",
    "bpda": "BPDA",
    "autoattack": "AutoAttack's attacks",
}


def stored(folder: Path = RESULTS) -> list[Record]:
    """All measurements for the paper's claims, ordered by claim and test."""
    records = [record for file in sorted(folder.glob("*.json")) for record in json.loads(file.read_text())]
    return sorted(records, key=lambda record: (list(CLAIMS).index(record["claim"]), record["test"]))


def markdown(records: Sequence[Record]) -> str:
    """The page: an introduction, a table of all claims, and a section for each."""
    sections = [_section(number, [record for record in records if record["claim"] == number]) for number in CLAIMS]
    introduction = (HERE / "reproduction-introduction.md").read_text().strip()
    return "\n\n".join([introduction, _overview(records), *filter(None, sections)]) + "\n"


def outcome(records: Sequence[Record]) -> str:
    """The outcome of a claim over all of its tests, in a few words."""
    held = [record["holds"] for record in records]
    if not held:
        return "not measured"
    question = not records[0]["claim"].isdigit()
    yes, no = ("yes", "no") if question else ("reproduced", "not reproduced")
    return yes if all(held) else no if not any(held) else f"in {sum(held)} of {len(held)} cases"


def _overview(records: Sequence[Record]) -> str:
    lines = ["| | claim or question | paper | here |", "| --- | --- | --- | --- |"]
    for number, claim in CLAIMS.items():
        found = outcome([record for record in records if record["claim"] == number])
        lines.append(f"| [{number}](#{_anchor(number)}) | {claim.text} | {claim.paper} | **{found}** |")
    return "\n".join(lines)


def _anchor(number: str) -> str:
    return _heading(number).lower().replace(" ", "-")


def _heading(number: str) -> str:
    return f"{'Claim' if number.isdigit() else 'Question'} {number}"


def _section(number: str, records: Sequence[Record]) -> str:
    if not records:
        return ""
    claim = CLAIMS[number]
    parts = [f"## {_heading(number)}", f"{claim.text}.", f"*Paper*: {claim.paper}.", f"*Here*: {outcome(records)}."]
    parts += [f"- {'Holds' if record['holds'] else '**Does not hold**'}: {record['ours']}." for record in records]
    parts += filter(None, [_audit_table(_audits(records)), _share_table(records)])
    if (DOCS / "figures" / f"claim-{number}.svg").exists():
        parts.append(f"![{claim.text}](figures/claim-{number}.svg)")
    parts += filter(None, [claim.explanation, _provenance(records)])
    return "\n\n".join(parts).replace("\n\n- ", "\n- ").replace(".\n- ", ".\n\n- ", 1)


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
        cells = [_percent(audit["accuracies"].get(key)) for key in columns]
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
    return "\n".join(["| | accuracy |", "| --- | --- |", *(f"| {name} | {_percent(share)} |" for name, share in rows)])


def _percent(share: Sequence[float] | None) -> str:
    return "" if share is None else "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * value for value in share))


def _provenance(records: Sequence[Record]) -> str:
    texts = dict.fromkeys(
        f"{record['images']} images of {record['data']}, budget {record['budget']}, seed {record['seed']}, "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        for record in records
    )
    return "\n\n".join(f"<sub>Measured on {text}.</sub>" for text in texts)


def main() -> None:
    """Draw the pictures, then write the page that shows them."""
    from audits.pictures import draw

    records = stored()
    draw(records, DOCS / "figures")
    (DOCS / "reproduction.md").write_text(markdown(records))


if __name__ == "__main__":
    main()
