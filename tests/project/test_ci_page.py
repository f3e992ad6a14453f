"""The page on CI says what there is: properties, options, rules; and the action is one that can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pytest_gradmask.plugin.options import OPTIONS
from pytest_gradmask.report.properties import properties
from tests.report.report_toys import plain_audit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text()


def test_every_property_is_named() -> None:
    finding = {"id": "randomized", "message": "", "undermines_attacks": False, "link": ""}
    names = {name.removeprefix("gradmask_") for name, _ in properties(plain_audit(findings=[finding]), 1)}
    assert len(names) > 10
    assert {re.sub("_(low|high)$", "", name) for name in names} <= set(re.findall(r"`(\w+)`", PAGE))


@pytest.mark.parametrize("name", [option.name for option in OPTIONS if option.metavar == "FILE"])
def test_every_file_that_is_written_is_named(name: str) -> None:
    assert f"--gradmask-{name}=" in PAGE


@pytest.mark.parametrize("number", range(len(re.findall(r"^```yaml$", PAGE, re.MULTILINE))))
def test_every_configuration_can_be_read(number: int) -> None:
    text = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number]
    assert yaml.safe_load(text)


def test_options_of_the_page_and_of_the_action_exist() -> None:
    known = {f"--gradmask-{option.name}" for option in OPTIONS}
    known |= {"--gradmask", "--gradmask-strict", "--gradmask-no-cache", "--gradmask-baseline-update"}
    for text in (PAGE, (ROOT / "action.yml").read_text()):
        named = set(re.findall(r"--gradmask[a-z-]*", text))
        assert named
        assert named <= known


def test_the_action_runs_no_input_as_part_of_a_script() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    scripts = [step["run"] for step in action["runs"]["steps"] if "run" in step]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)  # inputs come through the environment
    assert all(step["shell"] == "bash" for step in action["runs"]["steps"] if "run" in step)
