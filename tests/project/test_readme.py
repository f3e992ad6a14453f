"""The README is short, its example runs, its links lead somewhere, and it has the commands that CI runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()

#: What the example imports.
PROJECT = """
    import torch

    def load_my_defense():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))

    def load_test_images():
        images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return images, load_my_defense()(images).argmax(1)
"""


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) < 120


def test_the_example_is_a_test_of_ten_lines(pytester: pytest.Pytester) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 10
    pytester.makepyfile(my_project=PROJECT, test_readme=code)
    pytester.runpytest("--gradmask", "--gradmask-device=cpu").assert_outcomes(passed=1)


def test_its_links_lead_somewhere() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXT)]
    assert len(links) > 25
    missing = [link for link in links if not link.startswith("https://") and not (ROOT / link).is_file()]
    assert not missing


def test_every_guide_can_be_found_from_it() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", TEXT))
    assert {file.name for file in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


@pytest.mark.parametrize("name", ["tests", "examples", "audits"])
def test_it_has_the_commands_of_ci(name: str) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    function = script[script.index("command_of()") : script.index("copy=$")]
    done = subprocess.run(
        ["bash", "-euc", f"{function}\ncommand_of {name}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("python3 -m venv .venv && .venv/bin/python -m pip install")
    assert len(done.stdout.splitlines()) == 2


def test_nothing_is_advertised_that_cannot_be_done() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "tutorial.md"]
    # Not before a release is out.
    assert not [
        page.name for page in pages if re.search(r"^pip install .*pytest-gradmask", page.read_text(), re.MULTILINE)
    ]
