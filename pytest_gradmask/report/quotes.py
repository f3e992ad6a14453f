"""What papers take from an audit: how to cite it, and its table of attacks as CSV and LaTeX. From its JSON form."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_gradmask.report.wording import percent, plain_spaces, verdict_sentence

_COLUMNS = ("attack", "kind", "given", "broken", "robust accuracy", "low", "high")


def citation(audit: Mapping[str, Any]) -> str:
    """A sentence for a paper: the verdict with its figures, the attacks that ran, and the version."""
    attacks = [name for name, result in audit["robust_accuracy"].items() if result["status"] == "done"]
    version = audit["provenance"].get("versions", {}).get("pytest-gradmask", "")
    tool = f"pytest-gradmask {version}".strip()
    ran = f" with {', '.join(attacks)}" if attacks else ""
    return plain_spaces(f"{verdict_sentence(audit)} Audited by {tool}{ran}.")


def bibtex(audit: Mapping[str, Any]) -> str:
    """A BibTeX entry for the tool, in its version, with the budget of the audit."""
    provenance = audit["provenance"]
    version = provenance.get("versions", {}).get("pytest-gradmask", "")
    budget = provenance.get("budget", "")
    fields = {
        "title": "pytest-gradmask: a pytest plugin that flags gradient masking",
        "author": "{The pytest-gradmask developers}",
        "version": version,
        "note": f"Budget {budget}" if budget else "",
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join(["@software{pytest-gradmask,", *lines, "}"])


def _rows(audit: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    figures = [("no attack", "", audit["images"], "", audit["clean_accuracy"])]
    figures += [
        (name, result["kind"], result["attacked"], result["broken"], result)
        for name, result in audit["robust_accuracy"].items()
        if result["status"] == "done"
    ]
    figures.append(("all attacks", "", audit["images"], "", audit["all_attacks"]))
    for name, kind, given, broken, share in figures:
        yield name, kind, str(given), str(broken), *(f"{share[key]:.4f}" for key in ("value", "low", "high"))


def csv_table(audit: Mapping[str, Any]) -> str:
    """The table of attacks as CSV: accuracies and their bounds are shares of images."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *_rows(audit)])
    return text.getvalue()


def latex_table(audit: Mapping[str, Any]) -> str:
    """The table of attacks as LaTeX, for the package booktabs: accuracies in percent."""
    lines = [
        r"\begin{tabular}{llrrr}",
        r"\toprule",
        r"attack & kind & given & broken & robust accuracy \\",
        r"\midrule",
    ]
    for *cells, value, low, high in _rows(audit):
        shares = [percent(float(each)).replace("\N{NO-BREAK SPACE}%", "") for each in (value, low, high)]
        lines.append(" & ".join([*map(_escaped, cells), rf"{shares[0]}\,\% [{shares[1]}, {shares[2]}]"]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
