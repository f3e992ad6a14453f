"""Audits as one HTML file that needs no network, no script and no other file.

``pip install pytest-gradmask[report]``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pytest_gradmask.execution.files import replaced
from pytest_gradmask.report import charts, gradient_charts, quotes, wording
from pytest_gradmask.report.explanations import explanations
from pytest_gradmask.report.records import AuditRecord

_TEMPLATES = Path(__file__).parent / "templates"
_MEANINGS = {
    "MASKED": "adaptive attacks break images that gradient attacks do not break, even if these get the same budget "
    "again. The robust accuracy under gradient attacks is an artefact.",
    "NOT_MASKED": "a masking gap above the margin is excluded, and the attacks work on this defense. That alone does "
    "not make it robust.",
    "INCONCLUSIVE": "neither is shown. Such an audit does not pass.",
    "MASKED as expected": "the test expects that the defense masks its gradients, and it does.",
    "ERROR": "the audit raised an error and has measured nothing. Such an audit does not pass.",
}


def write_html(
    file: Path,
    records: Sequence[AuditRecord],
    transfers: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    *,
    complete: bool = True,
) -> None:
    """Write a run's report in one atomic step.

    Args:
        file: to write.
        records: the audits of the run, each with its evidence.
        transfers: transfer matrices in their JSON form.
        provenance: of the run.
        complete: whether pytest reached its end, and every selected audit ran.
    """
    page = render(records, transfers, provenance, complete=complete)
    with replaced(file) as part:
        part.write_text(page, encoding="utf-8")


def render(
    records: Sequence[AuditRecord],
    transfers: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    *,
    complete: bool = True,
) -> str:
    """The page, as text. The arguments are those of `write_html`.

    Audits are sorted by verdict, the worst first, and by test, so that the page is the same however workers shared the
    tests.
    """
    matrices = [_transfer(each) for each in sorted(transfers, key=lambda each: str(each["test"]))]
    by_test = sorted(records, key=lambda record: str(record["audit"]["test"]))
    worst = wording.SHOWN_VERDICTS.index
    ordered = sorted(by_test, key=lambda record: worst(wording.shown_verdict(record["audit"])))
    audits = [_audit(record, matrices) for record in ordered]
    tests = {audit["test"] for audit in audits}
    texts = explanations(finding["id"] for audit in audits for finding in audit["findings"])
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": wording.percent,
        "share": wording.share_text,
        "gap": wording.gap_figures,
        "eps": wording.eps_text,
    }
    return environment.get_template("report.html.jinja").render(
        audits=audits,
        counts={name: sum(audit["shown"] == name for audit in audits) for name in _MEANINGS},
        meanings=_MEANINGS,
        # The text is from our own documentation, and any HTML in it was escaped.
        explained={name: Markup(text) for name, text in texts.items()},  # nosec B704
        lone_transfers=[each for each in matrices if each["test"] not in tests],
        started=wording.moment(provenance["started"]),
        run=_run(provenance),
        complete=complete,
    )


def _audit(record: AuditRecord, matrices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the template shows of one audit."""
    audit, evidence = record["audit"], record["evidence"]
    raised = audit["clean_accuracy"] is None
    return {
        **audit,
        "shown": wording.shown_verdict(audit),
        "reason": wording.card_reason(audit),
        "sentence": wording.verdict_sentence(audit),
        "answers": _answers(audit),
        "quotes": {} if raised else _quotes(audit),
        "accuracy": None if raised else _picture(charts.accuracy_chart, audit),
        "survival": _survival(evidence.get("outcomes")),
        "noise": _noise(evidence.get("noise")),
        "landscapes": _landscapes(evidence.get("landscapes")),
        "pictures": evidence.get("pictures"),
        "saved": _saved(evidence.get("adversarial")),
        "transfers": [each for each in matrices if each["test"] == audit["test"]],
        "settings": _settings(audit, evidence),
    }


def _answers(audit: Mapping[str, Any]) -> dict[str, str]:
    """What a reader asks first, by question."""
    found = {
        "Hidden by": wording.hidden_by(audit),
        "Report instead": wording.report_instead(audit),
        "Reproduce": audit["provenance"].get("reproduce", ""),
    }
    return {question: answer for question, answer in found.items() if answer}


def _quotes(audit: Mapping[str, Any]) -> dict[str, str]:
    """Texts to copy into a paper, by their form."""
    return {
        "Text": quotes.citation(audit),
        "BibTeX": quotes.bibtex(audit),
        "Attacks as CSV": quotes.csv_table(audit),
        "Attacks as LaTeX": quotes.latex_table(audit),
    }


def _picture(make: Callable[..., charts.Picture], *data: Any) -> dict[str, str]:
    """A chart, or the error that prevents it: a page without one of its charts is better than no page."""
    try:
        return make(*data)._asdict()
    except Exception as error:  # of the library that draws
        return {"error": f"{type(error).__name__}: {error}"}


def _survival(outcomes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not outcomes or not outcomes["attacks"]:
        return None
    images = outcomes["images"]
    return {
        "picture": _picture(charts.survival_chart, outcomes),
        "misclassified": [image for image, correct in zip(images, outcomes["clean"], strict=True) if not correct],
        "broken": [
            {"name": attack["name"], "images": [images[index] for index in attack["broken"]]}
            for attack in outcomes["attacks"]
        ],
    }


def _noise(noise: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if not noise or "error" in noise:
        return noise
    ways = [{**way, "means": gradient_charts.mean_cosines(way)} for way in noise["ways"]]
    return {**noise, "ways": ways, "picture": _picture(gradient_charts.noise_chart, noise)}


def _landscapes(landscapes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if not landscapes or "error" in landscapes:
        return landscapes
    eps = landscapes["eps"]
    drawn = [
        {
            "image": each["image"],
            "zero": [line["along"] for line in each["lines"] if line["zero"]],
            "pictures": [
                _picture(gradient_charts.lines_chart, each, eps),
                _picture(gradient_charts.map_chart, each, eps),
            ],
        }
        for each in landscapes["images"]
    ]
    return {**landscapes, "images": drawn}


def _saved(saved: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if not saved or "error" in saved:
        return saved
    row = saved["example"]
    replay = (
        ""
        if row is None
        else (
            f"import numpy, torch; file = numpy.load({saved['file']!r}); "
            f'print(model(torch.from_numpy(file["adversarial"][{row}:{row + 1}])).argmax(1), '
            f'"instead of", file["labels"][{row}:{row + 1}])'
        )
    )
    return {**saved, "replay": replay}


def _transfer(transfer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **transfer,
        "threat": wording.threat_text(transfer["threat"]),
        "picture": _picture(charts.transfer_chart, transfer),
    }


def _settings(audit: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, str]:
    """Everything that the figures depend on, in words."""
    provenance = audit["provenance"]
    if not provenance:
        return {}
    hashes = evidence.get("hashes", {})
    return {
        "threat model": f"{wording.threat_text(provenance['threat'])}, images in {provenance['threat']['bounds']}",
        "budget": f"{provenance['budget']}; {provenance['autoattack']}",
        "margin": f"{100 * audit['margin']:.4g} percentage points",
        "confidence": f"{wording.percent(audit['confidence'])} of every bound and test",
        "attempt": f"{audit['attempt']}; earlier audits of this defense in the cache: {audit['earlier_audits']}",
        "images": f"{audit['images']} used, of {audit['images_given']} given",
        "every attack on every image": "yes"
        if audit["exhaustive"]
        else "no, only those that can change the verdict: accuracies are upper bounds",
        "given a natural gradient": "; ".join(map(_operation, audit["operations"])) or "no operation",
        "bypassed": wording.bypassed_text(audit) or "nothing",
        "seed": str(provenance["seed"]),
        "device": str(provenance["device"]),
        "precision under attack": _precision(provenance),
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        "SHA-256 of the defense": hashes.get("defense", f"none: {hashes.get('error', 'not computed')}"),
        "SHA-256 of images and labels": hashes.get("images and labels", f"none: {hashes.get('error', 'not computed')}"),
        "from the cache": "yes, from an earlier run" if audit["cached"] else "no",
        "seconds of the audit": f"{audit['seconds']:.1f}",
        "seconds for this report": f"{evidence.get('seconds', 0):.1f}",
    }


def _precision(provenance: Mapping[str, Any]) -> str:
    precision, own = provenance.get("precision", "own"), "the defense's own"
    if precision not in ("auto", "own"):
        return f"{precision}; scores in {own}"
    searching = provenance.get("search_precision", "own")
    return own if searching == "own" else f"{own}; {searching} where a query only guides a search"


def _operation(operation: Mapping[str, Any]) -> str:
    times = "once" if operation["count"] == 1 else f"{operation['count']} times"
    return f"{operation['name']} at {operation['file']}:{operation['line']}, {times} in a forward pass"


def _run(provenance: Mapping[str, Any]) -> dict[str, str]:
    return {
        "command": shlex.join(map(str, provenance["command"])),
        "started": wording.moment(provenance["started"]),
        "Python": str(provenance["python"]),
        "platform": str(provenance["platform"]),
        **{name: "the budget's" if value is None else str(value) for name, value in provenance["settings"].items()},
    }
