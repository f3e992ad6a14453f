"""The report on paper and on a telephone, and the order of its audits."""

from __future__ import annotations

import base64
import re

import pytest

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

from pytest_gradmask.report import charts, gradient_charts
from pytest_gradmask.report.html import render
from pytest_gradmask.report.json import to_json
from pytest_gradmask.report.records import AuditRecord
from tests.report.evidence_toys import masked_case
from tests.report.report_toys import plain_audit, plain_run


def page(*audits: dict[str, object]) -> str:
    return render([AuditRecord(audit=audit, evidence={}) for audit in audits], [], plain_run()["provenance"])


def test_the_worst_audits_come_first() -> None:
    verdicts = ("NOT_MASKED", "INCONCLUSIVE", "MASKED")
    text = page(*(plain_audit(f"t.py::test_{n}", verdict) for n, verdict in enumerate(verdicts)))
    assert re.findall(r'<h2 id="audit-\d">.*\n?.*?</span> (\w+)</span>', text) == list(reversed(verdicts))


def test_what_a_reader_asks_first_is_below_the_sentence() -> None:
    audit = to_json(masked_case().audit)
    audit["provenance"] = {**audit["provenance"], "reproduce": "pytest t.py::test_it --gradmask"}
    text = page(audit)
    answers = dict(re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", text))
    assert set(answers) >= {"Report instead", "Reproduce"}
    assert answers["Reproduce"] == "<code>pytest t.py::test_it --gradmask</code>"
    for form in ("Text", "BibTeX", "Attacks as CSV", "Attacks as LaTeX"):
        assert f"<details><summary>{form}</summary><pre" in text
    assert "<dt>" not in page(plain_audit())


def test_every_figure_has_its_label_where_a_table_is_stacked() -> None:
    text = page(to_json(masked_case().audit))
    tables = re.findall(r'<table class="[^"]*stacked">(.*?)</table>', text, re.DOTALL)
    assert len(tables) == 2
    for table in tables:
        heads = {
            re.sub(r" \[.*", "", head) for head in re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", table, re.DOTALL)
        }
        cells = re.findall(r"<td([^>]*)>(.*?)</td>", table, re.DOTALL)
        labels = [re.search('data-label="(.*?)"', attributes) for attributes, text in cells if text.strip()]
        notes = sum('class="note"' in attributes for attributes, _ in cells)
        assert sum(label is None for label in labels) == notes
        assert {label[1] for label in labels if label} <= heads


def cards(text: str) -> list[tuple[str, ...]]:
    """Class, link, defense and further lines of each card of the overview."""
    found = re.findall(r'<li class="card ([^"]*)">(.*?)</li>', text, re.DOTALL)
    return [
        (
            kind,
            *re.findall(r'<a href="#(.*?)">(.*?)</a>', body)[0],
            *re.findall(r"<p(?: class=\"figure\")?>(.*?)</p>", body),
        )
        for kind, body in found
    ]


def test_the_overview_begins_with_a_card_for_each_verdict() -> None:
    verdicts = ("NOT_MASKED", "MASKED", "INCONCLUSIVE")
    text = page(*(plain_audit(f"t.py::test_{n}", verdict) for n, verdict in enumerate(verdicts)))
    gap = "masking gap 0 [-10, 20] pp"
    assert cards(text) == [
        ("MASKED", "audit-1", "toy", gap, "it is MASKED"),
        ("INCONCLUSIVE", "audit-2", "toy", gap, "it is INCONCLUSIVE"),
        ("NOT_MASKED", "audit-3", "toy", gap, "it is NOT_MASKED"),
    ]
    assert text.index('class="cards"') < text.index('class="counts"') < text.index("<table")
    assert all(f'id="{link}"' in text for _, link, *_ in cards(text))


def test_a_card_names_what_hides_the_gradient() -> None:
    """A card names what hides the gradient instead of its first reason."""
    site = {"name": "torch.round", "file": "mine.py", "line": 8, "count": 1}
    finding = {"id": "hidden-gradient", "message": "it is", "undermines_attacks": False, "link": ""}
    known = plain_audit(verdict="MASKED", operations=[site], findings=[finding])
    assert cards(page(known))[0][-1] == "hidden by `torch.round` at mine.py:8"
    assert cards(page(plain_audit(verdict="INCONCLUSIVE", operations=[site], findings=[finding])))[0][-1] == (
        "it is INCONCLUSIVE"
    )


def test_a_card_without_a_gap() -> None:
    audit = plain_audit(verdict="INCONCLUSIVE", gap=None)
    assert cards(page(audit)) == [("INCONCLUSIVE", "audit-1", "toy", "it is INCONCLUSIVE")]
    assert 'class="cards"' not in page()


def texts(picture: charts.Picture) -> str:
    """What a chart says: its text is text."""
    return base64.b64decode(picture.src.partition(";base64,")[2]).decode()


def test_legends_name_only_what_is_drawn() -> None:
    noise = masked_case().evidence["noise"]  # one of its two gradients is zero, and has no cosine
    drawn, missing = (each["name"] for each in reversed(noise["ways"]))
    text = texts(gradient_charts.noise_chart(noise))
    assert drawn.split(" (")[0] in text
    assert f">{missing}<" not in text
    assert f"{missing}: none" in gradient_charts.noise_chart(noise).alt
