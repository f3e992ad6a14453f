"""Pictures of the site that show what the program prints, from one real run: ``python -m docs.pictures``.

The run audits a defense that rounds pixels, on the images that come with the package. From it come

- ``docs/images/failure.svg``, the message of the test that fails, as a terminal of 80 columns shows it,
- ``docs/images/failure.result``, the audit behind it, in the form of the cache,
- ``docs/sample-report.html``, the HTML report,
- ``docs/images/report-verdict.png``, the top of that report, if Chromium or Chrome is installed.

A test compares the words of the first with the message that the code writes today for the second.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FAILURE, AUDIT, TOP = (IMAGES / name for name in ("failure.svg", "failure.result", "report-verdict.png"))
REPORT = ROOT / "docs" / "sample-report.html"

FILES = {
    "my_defense.py": """\
from torch import nn

from pytest_gradmask import load_model


class Rounding(nn.Module):
    def forward(self, images):
        return (images * 16).round() / 16


def load_my_defense():
    return nn.Sequential(Rounding(), load_model("resnet-standard"))
""",
    "test_my_defense.py": """\
from my_defense import load_my_defense

from pytest_gradmask import Defense, assert_no_gradient_masking


def test_my_defense(gradmask, eval_batch):
    defense = Defense(load_my_defense().eval(), name="rounding")
    audit = gradmask.audit(defense, *eval_batch)
    assert_no_gradient_masking(audit)
""",
}
COMMAND = ("pytest", "--gradmask", "--gradmask-html=report.html")
CUT = "... (notes and findings)"
_COLUMNS = 80
_CHARACTER = 12.2  # width of a character in an SVG of rich
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def run(folder: Path) -> str:
    """Run the test in a folder, which holds its files then; what pytest prints, with colours.

    Raises:
        RuntimeError: the test has not failed as MASKED.
    """
    for name, text in FILES.items():
        (folder / name).write_text(text)
    arguments = [*COMMAND, "--gradmask-cache=cache", "--color=yes", "-p", "no:randomly", "-p", "no:cacheprovider"]
    # The report quotes the command: as a user types it, without the folder that pytest is installed in.
    start = f"import sys, pytest; sys.argv = {list(COMMAND)}; sys.exit(pytest.main({arguments[1:]}))"
    variables = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "PYTEST_ADDOPTS")}
    # Without a GPU, so that the same figures come out everywhere. The seed is 0 if none is given.
    variables |= {"COLUMNS": str(_COLUMNS), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode != 1 or "MASKED: rounding" not in done.stdout:
        raise RuntimeError(f"the run is not the failure that the picture shows:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def shortened(lines: Sequence[str]) -> list[str]:
    """The lines of a message without its notes and findings, which are between the table and the next step."""
    plain = [_COLOUR.sub("", line).removeprefix("E").strip() for line in lines]
    end = next(row for row, line in enumerate(plain) if line.startswith("all attacks "))
    following = next(row for row, line in enumerate(plain) if line.startswith("next: "))
    margin = lines[end][: lines[end].index("all attacks")]
    blank = next((line for line, text in zip(lines, plain, strict=True) if not text), "")
    return [*lines[: end + 1], blank, margin + CUT, blank, *lines[following:]]


def picture(printed: str) -> str:
    """The failure as an SVG document, from what pytest has printed."""
    lines = printed.splitlines()
    plain = [_COLOUR.sub("", line).strip() for line in lines]
    start = next(row for row, line in enumerate(plain) if line.startswith("def test_my_defense"))
    end = next(row for row in range(start, len(plain)) if plain[row].startswith("E       reproduce: "))
    summary = [lines[row] for row in (-2, -1)]
    shown = ["$ pytest --gradmask", "", *shortened(lines[start : end + 1]), "", *summary]
    texts = [Text.from_ansi(line) for line in shown]
    # Few lines are longer than the terminal. They are not broken, so that they can be found.
    width = max(_COLUMNS, *(text.cell_len for text in texts))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True, color_system="standard")
        for text in texts:
            console.print(text, no_wrap=True)
    document = console.export_svg(title="pytest --gradmask", unique_id="gradmask")
    return re.sub(r"@font-face \{.*?\}", "", document, flags=re.DOTALL)  # fonts of another server


def words(document: str) -> list[str]:
    """The lines of text in a picture."""
    lines: dict[float, dict[int, str]] = defaultdict(dict)
    for element in ElementTree.fromstring(document).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" in element.attrib:  # not the title
            column = round(float(element.attrib["x"]) / _CHARACTER)
            lines[float(element.attrib["y"])][column] = (element.text or "").replace("\N{NO-BREAK SPACE}", " ")
    return [_line(lines[height]) for height in sorted(lines)]


def _line(parts: dict[int, str]) -> str:
    line = ""
    for column in sorted(parts):
        line = line.ljust(column) + parts[column]
    return line.rstrip()


def top_of(report: Path, file: Path) -> bool:
    """Photograph the top of a report. Whether there is a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--window-size=1040,1500", f"--screenshot={file}"]
        subprocess.run([*command, report.as_uri()], capture_output=True, check=True, timeout=120)
    return True


def main() -> None:
    """Make all of them anew."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        FAILURE.write_text(picture(run(folder)))
        shutil.copy(folder / "report.html", REPORT)
        [stored] = [file for file in (folder / "cache").rglob("*.result") if b'"verdict"' in file.read_bytes()]
        shutil.copy(stored, AUDIT)
    made = [FAILURE, AUDIT, REPORT, *([TOP] if top_of(REPORT, TOP) else [])]
    print(*(file.relative_to(ROOT) for file in made), sep="\n")


if __name__ == "__main__":
    main()
