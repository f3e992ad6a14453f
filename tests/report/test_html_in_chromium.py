"""The report in a browser: every section is there, and something is drawn in each."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

from PIL import Image

from pytest_gradmask.report.html import render
from pytest_gradmask.report.json import to_json, transfer_to_json
from pytest_gradmask.report.records import AuditRecord
from tests.report.evidence_toys import masked_case
from tests.report.test_html_report import PROVENANCE
from tests.transfer.transfer_toys import pairwise

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")

SECTIONS = ("verdict", "why", "findings", "attacks", "gradient", "examples", "transfer", "provenance")
#: Those with pictures; the others are text.
COLOURFUL = {"attacks": 30, "gradient": 60, "examples": 100, "transfer": 4}


def mark(number: int) -> tuple[int, int, int]:
    """A colour that nothing else on the page has, for the edge of one section."""
    return (255, 0, 200 + number)


def browse(page: Path, result: Path, *options: str) -> Path:
    """Open a page in a browser, which writes a file."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert result.exists(), done.stderr
    return result


def screenshot(page: Path, width: int) -> Image.Image:
    shot = page.with_suffix(".png")
    browse(page, shot, "--hide-scrollbars", f"--window-size={width},12000", f"--screenshot={shot}")
    return Image.open(shot).convert("RGB")


def printed_pages(page: Path) -> int:
    pdf = page.with_suffix(".pdf")
    browse(page, pdf, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    return len(re.findall(rb"/Type /Page\b", pdf.read_bytes()))


@pytest.mark.longer
@pytest.mark.parametrize("width", [1280, 500])
def test_every_section_is_drawn(tmp_path: Path, width: int) -> None:
    case = masked_case()
    audit = {**to_json(case.audit), "test": "test_it.py::test_it"}
    record = AuditRecord(audit=audit, evidence=case.evidence)
    page = render([record], [transfer_to_json(audit["test"], pairwise(80, 20))], PROVENANCE)
    edges = "".join(
        f"#audit-1-{name} {{ border-left: 4px solid rgb{mark(number)} !important; }}"
        for number, name in enumerate(SECTIONS)
    )
    file = tmp_path / "page.html"
    file.write_text(page.replace("</style>", f"{edges}</style>"))
    shot = screenshot(file, width)
    left = next(x for x in range(width) if mark(1) in {shot.getpixel((x, y)) for y in range(shot.height)})
    column = [shot.getpixel((left + 1, y)) for y in range(shot.height)]
    for number, name in enumerate(SECTIONS):
        rows = [y for y, colour in enumerate(column) if colour == mark(number)]
        assert rows, f"section {name} is not on the page"
        section = shot.crop((left + 4, rows[0], width, rows[-1]))
        colours = section.getcolors(1 << 24)
        assert colours is not None
        drawn = 1 - max(count for count, _ in colours) / (section.width * section.height)
        assert drawn > 0.01, f"section {name} is empty"
        assert len(colours) > COLOURFUL.get(name, 4), f"section {name} has no picture"
        assert section.height > 20


@pytest.mark.longer
def test_every_audit_is_printed_on_one_page(tmp_path: Path) -> None:
    case = masked_case()
    record = AuditRecord(audit={**to_json(case.audit), "test": "test_it.py::test_it"}, evidence=case.evidence)
    page = render([record, record], [], PROVENANCE)
    file = tmp_path / "page.html"
    file.write_text(page)
    assert printed_pages(file) == 1 + 2  # the overview, and a page for each audit
    file.write_text(page.replace("@media print", "@media braille"))  # as on a screen, with all details
    assert printed_pages(file) > 3
