"""The pytest plugin: thin hooks around `settings`, `marker`, `fixtures` and `collector`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_gradmask.plugin.collector import Collector
from pytest_gradmask.plugin.fixtures import (
    backbone,
    benchmark_attack,
    composite,
    ensemble,
    eval_batch,
    gradmask,
    threat_model,
    transfer_matrix,
)
from pytest_gradmask.plugin.marker import DESCRIPTION, is_audit, read_marker
from pytest_gradmask.plugin.settings import add_options, read_settings
from pytest_gradmask.plugin.stash import AUDITS, SETTINGS

__all__ = [
    "backbone",
    "benchmark_attack",
    "composite",
    "ensemble",
    "eval_batch",
    "gradmask",
    "threat_model",
    "transfer_matrix",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register options and ini values."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, register the marker and the collector of results."""
    config.addinivalue_line("markers", DESCRIPTION)
    config.stash[SETTINGS] = read_settings(config)
    if not hasattr(config, "workerinput"):  # workers send their audits to the controller, which collects them
        config.pluginmanager.register(Collector(config.stash[SETTINGS]), "gradmask-collector")


def pytest_report_header(config: pytest.Config) -> str | None:
    """The effective settings, where audits run."""
    settings = config.stash[SETTINGS]
    if not settings.enabled:
        return None
    samples = "budget's number" if settings.samples is None else settings.samples
    return (
        f"gradmask: budget={settings.budget}, device={settings.torch_device}, data={settings.data}, "
        f"samples={samples}, seed={settings.seed}"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check every marker before anything runs, and skip audits that were not asked for."""
    settings = config.stash[SETTINGS]
    skip = pytest.mark.skip(reason="an audit: runs with --gradmask only")
    for item in items:
        if is_audit(item):
            read_marker(item, settings)
            if not settings.enabled:
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Put a test's audits on its report, which xdist carries to the controller as plain data."""
    report = yield
    if call.when == "call":
        report.gradmask_audits = item.stash.get(AUDITS, [])
    return report
