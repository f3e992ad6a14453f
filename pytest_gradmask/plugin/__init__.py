"""The pytest plugin: thin hooks around `options`, `settings`, `marker`, `fixtures`, `selection` and `collector`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_gradmask.loading.class_folders import note_on
from pytest_gradmask.plugin import hookspecs
from pytest_gradmask.plugin.benchmarks import benchmark_attack
from pytest_gradmask.plugin.fixtures import (
    backbone,
    composite,
    ensemble,
    eval_batch,
    gradmask,
    gradmask_model,
    threat_model,
    transfer_matrix,
)
from pytest_gradmask.plugin.marker import DESCRIPTION, is_audit, read_marker
from pytest_gradmask.plugin.options import add_options
from pytest_gradmask.plugin.settings import read_settings
from pytest_gradmask.plugin.starter import write_starter
from pytest_gradmask.plugin.stash import REPORT_ATTRIBUTES, SETTINGS
from pytest_gradmask.printable import encodable_data, printable

__all__ = [
    "backbone",
    "benchmark_attack",
    "composite",
    "ensemble",
    "eval_batch",
    "gradmask",
    "gradmask_model",
    "threat_model",
    "transfer_matrix",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register options and ini values."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that other plugins may implement."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> pytest.ExitCode | None:
    """With ``--gradmask-init``, write a first test and run no tests."""
    path = config.getoption("gradmask_init")
    if path is None:
        return None
    print(write_starter(path, config.invocation_params.dir))
    return pytest.ExitCode.OK


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and register the marker, the selection of audits and the collector of results."""
    config.addinivalue_line("markers", DESCRIPTION)
    settings = config.stash[SETTINGS] = read_settings(config)
    if not settings.enabled:
        return
    # Imported here, so that runs without audits do not load them.
    from pytest_gradmask.plugin.collector import Collector
    from pytest_gradmask.plugin.selection import Selection

    is_worker = hasattr(config, "workerinput")
    selection = Selection(is_worker=is_worker)
    config.pluginmanager.register(selection, "gradmask-selection")
    if not is_worker:  # workers send their audits to the controller, which collects them
        config.pluginmanager.register(Collector(config, settings, selection), "gradmask-collector")


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    """Print the effective settings if audits run, and how class folders are ordered."""
    settings = config.stash[SETTINGS]
    if not settings.enabled:
        return None
    samples = "budget's number" if settings.samples is None else settings.samples
    model = "" if settings.model is None else f"model={settings.model}, "
    engine = "" if settings.engine == "local" else f", engine={settings.engine}"
    attempt = "" if settings.attempt == 1 else f", attempt={settings.attempt}"
    note = note_on(settings.data)
    lines = [
        f"gradmask: budget={settings.budget}, device={settings.torch_device}, {model}data={settings.data}, "
        f"samples={samples}, seed={settings.seed}{attempt}{engine}",
        *([f"gradmask: {note}"] if note else []),
    ]
    return [printable(line) for line in lines]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check every marker before any test runs. Without ``--gradmask``, skip all audits."""
    settings = config.stash[SETTINGS]
    skip = pytest.mark.skip(reason="an audit: runs with --gradmask only")
    for item in items:
        if is_audit(item):
            read_marker(item, settings)
            if not settings.enabled:
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Put a test's audits on its report. pytest-xdist sends the report to the controller as plain data."""
    report = yield
    for name, key in REPORT_ATTRIBUTES.items():
        if key in item.stash:  # only what this phase has added: fixtures may audit, too
            setattr(report, name, item.stash[key])
            del item.stash[key]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(config: pytest.Config) -> Generator[None, Any, Any]:
    """Let pytest-xdist send messages with bytes that are no text: they would end the worker, and its other audits."""
    data = yield
    return encodable_data(data) if config.stash[SETTINGS].enabled else data
