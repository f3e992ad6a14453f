"""The report under axe-core, which knows the rules for people who do not see, or not well: none is broken.

It needs Chromium or Chrome, and ``npm install --no-save axe-core`` in the root of the repository.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

from pytest_gradmask.report.html import render
from pytest_gradmask.report.json import crash_to_json, to_json, transfer_to_json
from pytest_gradmask.report.records import AuditRecord
from tests.report.evidence_toys import honest_case, masked_case
from tests.report.test_html_in_chromium import CHROMIUM
from tests.report.test_html_report import PROVENANCE
from tests.transfer.transfer_toys import pairwise

FOLDERS = (
    Path(__file__).parents[2] / "node_modules",
    *map(Path, ("/usr/lib/node_modules", "/usr/local/lib/node_modules")),
)
AXE = next((file for folder in FOLDERS if (file := folder / "axe-core" / "axe.min.js").is_file()), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None or AXE is None, reason="needs Chromium or Chrome, and axe-core of npm")

#: Runs axe on the page, and leaves what it found in an attribute. Base64, as the DOM is printed as HTML.
RUN = """
<script>
axe.run(document).then(
  found => found.violations.map(each => [each.id, each.nodes.map(node => node.html.slice(0, 200))]),
  error => [["axe", [String(error)]]],
).then(found => { document.body.dataset.axe = btoa(unescape(encodeURIComponent(JSON.stringify(found)))); });
</script>
"""


def report() -> str:
    """A page with everything that a page can have."""
    cases = [masked_case(), honest_case()]
    audits = [{**to_json(case.audit), "test": f"test_it.py::test_{number}"} for number, case in enumerate(cases)]
    records = [AuditRecord(audit=audit, evidence=case.evidence) for audit, case in zip(audits, cases, strict=True)]
    records.append(AuditRecord(audit=crash_to_json("test_it.py::test_2", "net", ValueError("train mode")), evidence={}))
    transfers = [transfer_to_json(test, pairwise(80, 20)) for test in ("test_it.py::test_0", "test_it.py::test_lone")]
    return render(records, transfers, PROVENANCE, complete=False)


def dark(page: str) -> str:
    """The page as a browser in dark mode shows it."""
    assert page.count("@media (prefers-color-scheme: dark)") == 2
    return page.replace("@media (prefers-color-scheme: dark)", "@media all")


def violations(page: str, folder: Path, width: int = 1280) -> dict[str, list[str]]:
    """The rules that a page breaks, each with the elements that do."""
    assert CHROMIUM is not None
    assert AXE is not None
    page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)  # it forbids scripts
    assert count == 1
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{AXE.read_text()}</script>{RUN}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},2000", "--virtual-time-budget=60000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    found = re.search(r'data-axe="([^"]*)"', done.stdout)
    assert found, done.stderr
    return dict(json.loads(base64.b64decode(found[1])))


@pytest.mark.parametrize("width", [1280, 500])
def test_no_rule_is_broken(tmp_path: Path, width: int) -> None:
    assert violations(report(), tmp_path, width) == {}


def test_no_rule_is_broken_in_the_dark(tmp_path: Path) -> None:
    assert violations(dark(report()), tmp_path) == {}


def test_broken_rules_are_seen(tmp_path: Path) -> None:
    page = report().replace('<html lang="en">', "<html>")
    page = re.sub(r' alt="Robust[^"]*"', "", page)
    page = page.replace("--quiet: #545c66", "--quiet: #d5d8dc")
    assert {"html-has-lang", "image-alt", "color-contrast"} <= violations(page, tmp_path).keys()
