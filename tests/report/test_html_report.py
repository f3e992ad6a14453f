"""The HTML report: complete, well formed, accessible, and safe for any names that it shows."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import re
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

from pytest_gradmask.report import charts
from pytest_gradmask.report.explanations import explanations
from pytest_gradmask.report.html import render, write_html
from pytest_gradmask.report.json import crash_to_json, to_json, transfer_to_json
from pytest_gradmask.report.records import AuditRecord
from tests.report.evidence_toys import honest_case, masked_case
from tests.transfer.transfer_toys import pairwise

EVIL = "<script>alert('$x_{')</script>"
PROVENANCE = {
    "command": ["pytest", EVIL],
    "started": "2030-01-02T03:04:05+00:00",
    "python": "3.11.7",
    "platform": "Linux",
    "settings": {"budget": "smoke", "samples": None},
}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The page as a browser parses it: tags with attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]

    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(data for tag, data in self.texts if tag != "style"))


def records(
    audits: Sequence[Mapping[str, Any]], evidence: Sequence[Mapping[str, Any]] | None = None
) -> list[AuditRecord]:
    """Each audit with its evidence, by default none."""
    evidence = [{} for _ in audits] if evidence is None else evidence
    return [AuditRecord(audit=dict(audit), evidence=dict(each)) for audit, each in zip(audits, evidence, strict=True)]


def page(
    audits: Sequence[Mapping[str, Any]] = (),
    evidence: Sequence[Mapping[str, Any]] | None = None,
    transfers: Sequence[Mapping[str, Any]] = (),
    **arguments: Any,
) -> Page:
    found = Page(render(records(audits, evidence), transfers, PROVENANCE, **arguments))
    assert found.open == []
    return found


@functools.cache
def with_everything() -> Page:
    """Two audits with all that belongs to them, and two transfer matrices."""
    cases = [masked_case(), honest_case()]
    audits = [{**to_json(case.audit), "test": f"test_it.py::test_{number}"} for number, case in enumerate(cases)]
    matrix = pairwise(80, 20)
    transfers = [transfer_to_json(test, matrix) for test in ("test_it.py::test_0", "test_it.py::test_lone")]
    return page(audits, [case.evidence for case in cases], transfers)


def evil_audit() -> dict[str, Any]:
    audit = {**to_json(masked_case().audit), "test": f"test_it.py::test[{EVIL}]", "defense": EVIL}
    attacks = dict(audit["robust_accuracy"])
    attacks[EVIL] = {**attacks.pop("bpda"), "status": "failed", "note": f"RuntimeError: {EVIL}", "value": None}
    finding = {"id": EVIL, "message": EVIL, "undermines_attacks": True, "link": f"javascript:{EVIL}"}
    return {**audit, "robust_accuracy": attacks, "findings": [finding], "reasons": [EVIL], "bypassed": [EVIL]}


def test_a_page_needs_no_other_file() -> None:
    found = with_everything()
    assert not found.all("script", "link", "iframe", "object")
    sources = [attributes["src"] or "" for attributes in found.all("img")]
    assert len(sources) > 20
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    (style,) = (data for tag, data in found.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (attributes["content"] for attributes in found.all("meta") if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.longer
def test_charts_are_well_formed() -> None:
    for attributes in with_everything().all("img"):
        kind, _, data = (attributes["src"] or "").partition(";base64,")
        if kind == "data:image/svg+xml":
            tree = xml.etree.ElementTree.fromstring(base64.b64decode(data))
            links = [value for element in tree.iter() for key, value in element.attrib.items() if key.endswith("href")]
            assert all(link.startswith(("#", "data:image/png")) for link in links)


def test_a_page_can_be_read_without_eyes() -> None:
    found = with_everything()
    assert found.all("html") == [{"lang": "en"}]
    assert any(attributes.get("name") == "viewport" for attributes in found.all("meta"))
    assert len(found.all("main")) == len(found.all("h1")) == len(found.all("title")) == 1
    assert len(found.all("header")) == len(found.all("footer")) == 1
    assert all(len(attributes["alt"] or "") > 10 for attributes in found.all("img"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    found = with_everything()
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for attributes in found.all("a")]
    assert "#finding-zero-gradient" in links
    assert all(link.startswith("https://") or link[1:] in ids for link in links)
    named = [attributes["aria-labelledby"] for _, attributes in found.tags if "aria-labelledby" in attributes]
    assert set(named) <= set(ids)


def test_a_page_says_what_was_found() -> None:
    text = with_everything().text()
    audit = masked_case().audit
    for expected in (
        "once adaptive attacks join them: MASKED (masking gap of",
        "once adaptive attacks join them: NOT_MASKED (masking gap of",
        audit.reasons[0],
        next(finding.message for finding in audit.findings if finding.id == "zero-gradient"),
        "it is exactly zero at",
        "Differences are amplified",
        masked_case().evidence["hashes"]["defense"],
        "python ",
        "fooled, of 100 images".capitalize(),
        "Transfer matrices of other tests",
        "What the findings mean",
    ):
        assert expected in text


def test_every_attack_is_in_the_table() -> None:
    text = page([to_json(masked_case().audit)]).text()
    for result in masked_case().audit.attacks:
        assert result.name in text
        if result.status != "done":
            assert result.status.replace("-", " ") + f": {result.note}" in text
        else:
            assert str(result.forwards) in text


def test_the_worst_of_many_draws_is_below_their_mean() -> None:
    plain = to_json(masked_case().audit)
    assert "no sample wrong" not in page([plain]).text()
    randomized = {**plain, "all_attacks_worst_draw": {**plain["all_attacks"], "value": 0.125, "low": 0.1, "high": 0.2}}
    assert re.search(r"all attacks, no sample wrong\s*12\.5", page([randomized]).text())


def test_names_and_messages_are_shown_and_never_run() -> None:
    evidence = json.loads(json.dumps(masked_case().evidence).replace('"bpda"', json.dumps(EVIL)))
    evidence["noise"] = {"error": EVIL}
    transfer = transfer_to_json(EVIL, pairwise(80, 20, names=("a", EVIL)))  # type: ignore[arg-type]
    found = page([evil_audit()], [evidence], [transfer])
    assert not found.all("script")
    assert not [
        attributes for attributes in found.all("a") if not (attributes["href"] or "").startswith(("#", "https:"))
    ]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.text().count(EVIL) > 10
    assert "could not be drawn" not in found.text()


def test_a_crashed_audit_and_one_without_evidence() -> None:
    crash = crash_to_json("test_it.py::test_train", "net", ValueError("train mode"))
    found = page([crash, to_json(masked_case().audit)])
    assert "net: INCONCLUSIVE, as the audit raised ValueError: train mode." in found.text()
    assert "Quality of the gradient" not in found.text()


def test_a_part_that_could_not_be_made() -> None:
    evidence = {"noise": {"error": "OSError: gone"}, "pictures": {"error": "OSError: lost"}}
    text = page([to_json(masked_case().audit)], [evidence]).text()
    assert "could not be made: OSError: gone. The verdict does not depend on it." in text
    assert "could not be made: OSError: lost." in text


def test_a_chart_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(outcomes: Mapping[str, Any]) -> None:
        raise RuntimeError(f"no ink for {len(outcomes['images'])} images")

    monkeypatch.setattr(charts, "survival_chart", fails)
    shown = {name: masked_case().evidence[name] for name in ("outcomes", "pictures")}
    found = page([to_json(masked_case().audit)], [shown])
    assert found.text().count("could not be drawn: RuntimeError: no ink for 24 images") == 1
    assert "Adversarial examples" in found.text()


def test_a_page_without_audits() -> None:
    found = page(complete=False)
    assert "No audit ran to its end" in found.text()
    assert "The run is not complete" in found.text()
    assert "interrupted" not in page([to_json(masked_case().audit)]).text()


def test_the_order_of_audits_does_not_matter() -> None:
    audits = [crash_to_json(test, "net", ValueError(test)) for test in ("b", "a")]
    evidence = [{"pictures": masked_case().evidence["pictures"]}, {}]
    there, back = (
        render(records(some, shown), [], PROVENANCE)
        for some, shown in ((audits, evidence), (audits[::-1], evidence[::-1]))
    )
    assert there == back


def test_explanations_escape_html_and_link_findings() -> None:
    texts = explanations(["zero-gradient", "interrupted-graph", "no-such-finding"])
    assert list(texts) == ["interrupted-graph", "zero-gradient"]
    assert '<a href="#finding-zero-gradient">' in texts["interrupted-graph"]
    alone = explanations(["interrupted-graph"])["interrupted-graph"]
    assert "#finding-" not in alone
    assert "zero-gradient" in alone


def test_a_page_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")

    def cut_off(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text[:10].encode(encoding))
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_off)
        with pytest.raises(OSError, match="disk full"):
            write_html(file, [], [], PROVENANCE)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    write_html(file, [], [], PROVENANCE)
    assert file.read_text().startswith("<!doctype html>")
