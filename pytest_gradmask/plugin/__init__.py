"""The pytest plugin: thin hooks around `options`, `settings`, `marker`, `fixtures`, `selection` and `collector`."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_gradmask.loading.class_folders import note_on
from pytest_gradmask.plugin import hookspecs
from pytest_gradmask.plugin.benchmarks import benchmark_attack
from pytest_gradmask.plugin.explain import explain_finding
from pytest_gradmask.plugin.fixtures import eval_batch, gradmask, threat_model, transfer_matrix
from pytest_gradmask.plugin.marker import DESCRIPTION, is_audit, read_marker
from pytest_gradmask.plugin.models import backbone, composite, ensemble, gradmask_model
from pytest_gradmask.plugin.options import add_options
from pytest_gradmask.plugin.settings import check_options_are_used, read_settings
from pytest_gradmask.plugin.starter import write_starter
from pytest_gradmask.plugin.stash import EXPECTED, REPORT_ATTRIBUTES, SETTINGS
from pytest_gradmask.plugin.tracebacks import shorten_traceback
from pytest_gradmask.plugin.unchecked import check_that_something_is_asserted
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

#: Why an audit is skipped.
SKIPPED = "an audit: runs with --gradmask only"
#: How the names of errors begin before messages of our assertions on audits, and before our errors.
_BEFORE_THE_POINT = re.compile(
    r"^(AssertionError: (?=(NOT_MASKED|MASKED|INCONCLUSIVE): )|pytest_gradmask\.errors\.(?=\w+: ))"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register options and ini values."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks that other plugins may implement."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> pytest.ExitCode | None:
    """With ``--gradmask-init``, write a first test; with ``--gradmask-explain``, print a page. Then run no tests."""
    finding = config.getoption("gradmask_explain")
    if finding is not None:
        print(explain_finding(finding))
        return pytest.ExitCode.OK
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

    if settings.deadline is not None:
        from pytest_gradmask.plugin.deadline import RunDeadline

        config.pluginmanager.register(RunDeadline(settings.deadline, settings.workers), "gradmask-deadline")
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
    samples = "" if settings.samples is None else f"samples={settings.samples}, "
    model = "" if settings.model is None else f"model={settings.model}, "
    engine = "" if settings.engine == "local" else f", engine={settings.engine}"
    attempt = "" if settings.attempt == 1 else f", attempt={settings.attempt}"
    note = note_on(settings.data)
    lines = [
        f"gradmask: budget={settings.budget}, device={settings.torch_device}, {model}data={settings.data}, "
        f"{samples}seed={settings.seed}{attempt}{engine}",
        *([f"gradmask: {note}"] if note else []),
    ]
    return [printable(line) for line in lines]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check every marker before any test runs. Without ``--gradmask``, skip all audits."""
    settings = config.stash[SETTINGS]
    skip = pytest.mark.skip(reason=SKIPPED)
    for item in items:
        if is_audit(item):
            read_marker(item, settings)
            if not settings.enabled:
                item.add_marker(skip)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Check that options of data and models are used by a test that was selected."""
    if session.config.stash[SETTINGS].enabled and session.items:
        check_options_are_used(session.config, session.items)


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """Say whose images are audited if nobody has chosen any."""
    settings = config.stash[SETTINGS]
    chosen = settings.data != "embedded" or config.getoption("gradmask_data") is not None
    if chosen or not settings.enabled or not any("eval_batch" in getattr(item, "fixturenames", ()) for item in items):
        return []
    return ["gradmask: eval_batch has 20 images of CIFAR-10, as no --gradmask-data was given"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how to run the audits that were skipped."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and report.longrepr[2].endswith(SKIPPED)
    ]
    if skipped and not config.stash[SETTINGS].enabled:
        audits = "1 audit was" if len(skipped) == 1 else f"{len(skipped)} audits were"
        terminalreporter.write_line(f"{audits} skipped: run pytest --gradmask")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Warn about a test that audits and asserts nothing."""
    result = yield
    check_that_something_is_asserted(item)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Put a test's audits on its report. pytest-xdist sends the report to the controller as plain data."""
    if not item.config.getoption("fulltrace", False):
        shorten_traceback(call.excinfo)
    report = yield
    for name, key in REPORT_ATTRIBUTES.items():
        if key in item.stash:  # only what this phase has added: fixtures may audit, too
            setattr(report, name, item.stash[key])
            del item.stash[key]
    if EXPECTED in item.stash:
        report.gradmask_expected = sorted(item.stash[EXPECTED].items())
        del item.stash[EXPECTED]
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        # What pytest puts before it leaves no room for the verdict, or for what is wrong, in its short summary.
        crash.message = _BEFORE_THE_POINT.sub("", crash.message)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(config: pytest.Config) -> Generator[None, Any, Any]:
    """Let pytest-xdist send messages with bytes that are no text: they would end the worker, and its other audits."""
    data = yield
    return encodable_data(data) if config.stash[SETTINGS].enabled else data
