"""Every option and ini value of the plugin says what it does, and has a test that uses it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask import plugin

TESTS = Path(__file__).parent

#: For each option the test that shows what it does. The same for ini values below. A new option needs a line in both.
OPTIONS = {
    "--gradmask": "test_options.py::test_with_the_option_audits_run",
    "--gradmask-adversarial": "test_adversarial_option.py::test_each_audit_has_a_file",
    "--gradmask-attempt": "test_attempts.py::test_the_option_says_how_many_there_have_been",
    "--gradmask-badge": "test_ci.py::TestBadge::test_it_shows_the_worst_verdict",
    "--gradmask-baseline": "test_ci.py::TestBaseline::test_only_a_worse_run_fails",
    "--gradmask-baseline-update": "test_ci.py::TestBaseline::baseline",
    "--gradmask-budget": "test_options.py::test_an_option_goes_before_its_ini_value",
    "--gradmask-cache": "test_cache_option.py::test_a_folder_can_be_chosen",
    "--gradmask-data": "test_options.py::test_missing_data_is_a_usage_error",
    "--gradmask-deadline": "test_deadline.py::test_a_run_without_time_passes_nothing",
    "--gradmask-device": "test_options.py::test_missing_cuda_is_a_usage_error",
    "--gradmask-download": "test_options.py::test_missing_data_is_downloaded_on_request_only",
    "--gradmask-engine": "../execution/test_ray_engine.py::test_pytest_on_a_cluster_writes_the_same_json",
    "--gradmask-explain": "test_explain.py::test_it_prints_the_page_of_a_finding",
    "--gradmask-history": "../report/test_history.py::test_the_option_keeps_a_run",
    "--gradmask-html": "test_html_option.py::test_workers_do_not_change_the_page",
    "--gradmask-init": "test_starter.py::test_the_test_it_writes_gives_a_verdict",
    "--gradmask-json": "test_reporting.py::test_verdicts_reach_the_terminal_and_the_json_file",
    "--gradmask-model": "test_model_option.py::test_the_model_of_the_command_line",
    "--gradmask-no-cache": "test_cache_option.py::test_no_cache_neither_reads_nor_writes",
    "--gradmask-precision": "test_deadline.py::test_attacks_run_in_the_chosen_precision",
    "--gradmask-samples": "test_fixtures.py::test_images_are_chosen_by_option_and_seed",
    "--gradmask-sarif": "../report/test_sarif.py::test_the_option_writes_the_file",
    "--gradmask-strict": "test_unchecked.py::test_with_the_option_it_fails",
    "--gradmask-timeout": "test_timeout.py::test_a_hanging_defense_is_inconclusive",
    "--gradmask-seed": "test_attempts.py::test_audits_with_another_seed_are_counted_and_change_nothing",
}
INI_VALUES = {
    "gradmask": "test_options.py::test_the_ini_value_turns_audits_on",
    "gradmask_adversarial": "test_adversarial_option.py::test_the_ini_value_does_the_same",
    "gradmask_attempt": "test_attempts.py::test_the_ini_value_and_the_marker_do_the_same",
    "gradmask_badge": "test_ci.py::TestBadge::test_the_ini_value_names_the_file",
    "gradmask_baseline": "test_ci.py::TestBaseline::test_the_ini_values_do_the_same",
    "gradmask_baseline_update": "test_ci.py::TestBaseline::test_the_ini_values_do_the_same",
    "gradmask_budget": "test_options.py::test_an_option_goes_before_its_ini_value",
    "gradmask_cache": "test_options.py::test_ini_values_of_data_and_places",
    "gradmask_data": "test_options.py::test_ini_values_of_data_and_places",
    "gradmask_deadline": "test_deadline.py::test_a_run_without_time_passes_nothing",
    "gradmask_device": "test_options.py::test_the_ini_value_turns_audits_on",
    "gradmask_download": "test_options.py::test_missing_data_is_downloaded_on_request_only",
    "gradmask_engine": "../execution/test_engine.py::test_silent_cluster_is_a_usage_error",
    "gradmask_history": "../report/test_history.py::test_the_ini_value_keeps_a_run",
    "gradmask_html": "test_html_option.py::test_no_page_without_audits",
    "gradmask_json": "test_options.py::test_ini_values_of_data_and_places",
    "gradmask_model": "test_model_option.py::test_the_model_of_the_command_line",
    "gradmask_no_cache": "test_cache_option.py::test_the_ini_value_turns_the_cache_off",
    "gradmask_precision": "test_deadline.py::test_attacks_run_in_the_chosen_precision",
    "gradmask_samples": "test_options.py::test_ini_values_of_data_and_places",
    "gradmask_sarif": "../report/test_sarif.py::test_the_ini_value_writes_the_file",
    "gradmask_strict": "test_unchecked.py::test_the_ini_value_does_the_same",
    "gradmask_timeout": "test_timeout.py::test_a_hanging_defense_is_inconclusive",
    "gradmask_seed": "test_options.py::test_the_header_prints_the_effective_settings",
}
TABLE = OPTIONS | INI_VALUES


class Recorder:
    """Stands in for pytest's parser, and for its groups: name and help of everything that is registered."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.ini_values: dict[str, str] = {}

    def getgroup(self, *_: Any) -> Recorder:
        return self

    def addoption(self, name: str, *, help: str = "", **_: Any) -> None:  # noqa: A002
        self.options[name] = help

    def addini(self, name: str, help: str = "", **_: Any) -> None:  # noqa: A002
        self.ini_values[name] = help


@pytest.fixture(scope="module")
def registered() -> Recorder:
    recorder = Recorder()
    plugin.pytest_addoption(recorder)  # type: ignore[arg-type]
    return recorder


def functions(file: Path) -> set[str]:
    """Every function of a file, and every method, as in a node id."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_the_tables_have_every_option_and_ini_value(registered: Recorder) -> None:
    assert sorted(registered.options) == sorted(OPTIONS)
    assert sorted(registered.ini_values) == sorted(INI_VALUES)


def test_every_option_has_its_ini_value(registered: Recorder) -> None:
    names = {name.removeprefix("--").replace("-", "_") for name in registered.options}
    assert names - set(registered.ini_values) == {
        "gradmask_explain",
        "gradmask_init",
    }  # no settings, but something to do
    assert names >= set(registered.ini_values)


@pytest.mark.parametrize("name", TABLE)
def test_it_says_what_it_does(registered: Recorder, name: str) -> None:
    text = (registered.options | registered.ini_values)[name]
    assert len(text.split()) >= 3


@pytest.mark.parametrize(("name", "test"), TABLE.items(), ids=TABLE)
def test_its_test_exists(name: str, test: str) -> None:
    file, _, function = test.partition("::")
    assert function in functions(TESTS / file)
    source = (TESTS / file).read_text().replace(r"\n", " ")
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", source)


def test_the_scan_sees_what_is_missing() -> None:
    # So that the tests above cannot pass on a scan that finds everything.
    found = functions(TESTS / "test_ci.py")
    assert "TestBadge::test_it_shows_the_worst_verdict" in found
    assert not {"test_it_shows_the_worst_verdict", "TestBadge"} & found
