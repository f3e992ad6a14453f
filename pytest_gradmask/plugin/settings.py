"""The settings of a run, read from its options and ini values. No torch: this runs at every pytest start."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.errors import DependencyError, EngineError, InputError
from pytest_gradmask.execution.engine import check_engine
from pytest_gradmask.execution.precision import Precision
from pytest_gradmask.loading import specs
from pytest_gradmask.plugin.options import FLAGS, OPTIONS, PATHS


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a run.

    Attributes:
        enabled: whether audits run at all.
        strict: whether a test that audits and asserts nothing fails.
        budget: name of the budget.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        data: specification of the evaluation images.
        model: specification of the model of the fixture ``gradmask_model``; None if it was not given.
        samples: number of evaluation images; None for the budget's number, or all images if there are fewer.
        attempt: which audit of the same defenses this is, from 1, at least.
        seed: of every random choice.
        json: file to write audits to.
        badge: file to write a badge to.
        sarif: file to write results for code scanning to.
        history: folder to keep every run in.
        baseline: file with audits to compare with.
        baseline_update: whether to write that file anew instead.
        html: file to write a report to, with pictures.
        download: whether missing data and pretrained weights may be downloaded.
        cache: folder to store results in; None for pytest's own cache.
        no_cache: whether results are neither stored nor taken from the cache.
        timeout: seconds that an audit may take; None for no limit.
        precision: in which defenses compute under attack.
        deadline: seconds that all audits of the run share; None for no limit.
        engine: where attacks run: ``"local"``, ``"ray"`` or ``"ray:ADDRESS"``.
        worker: number of this worker of pytest-xdist; 0 without pytest-xdist.
        workers: number of workers of pytest-xdist; 1 without pytest-xdist.
    """

    enabled: bool
    strict: bool
    budget: str
    device: str
    data: str
    model: str | None
    samples: int | None
    attempt: int
    seed: int
    json: Path | None
    badge: Path | None
    sarif: Path | None
    history: Path | None
    baseline: Path | None
    baseline_update: bool
    html: Path | None
    adversarial: Path | None
    download: bool
    cache: Path | None
    no_cache: bool
    timeout: float | None
    deadline: float | None
    precision: Precision
    engine: str
    worker: int = 0
    workers: int = 1

    @property
    def torch_device(self) -> str:
        """The device with ``auto`` resolved. Under pytest-xdist, workers get the GPUs in turn. Imports torch."""
        if self.device not in ("auto", "cuda"):
            return self.device
        import torch

        if not torch.cuda.is_available():
            return "cpu" if self.device == "auto" else self.device
        # On a cluster, Ray chooses the GPU.
        if self.workers == 1 or self.engine != "local":
            return "cuda"
        return f"cuda:{self.worker % torch.cuda.device_count()}"


def read_settings(config: pytest.Config) -> Settings:
    """Read every setting: from the command line, else from the ini file, else its default.

    Raises:
        pytest.UsageError: an ini value that the option would refuse, CUDA on a machine without it, a cluster that does
            not answer, data or a model's file that does not exist, or one file for two outputs.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = config.getoption(f"gradmask_{option.name}")
        if value is None:
            text = str(config.getini(f"gradmask_{option.name}"))
            try:
                value = option.parse(_from_ini(config, text) if option.name in PATHS else text) if text else None
            except argparse.ArgumentTypeError as error:
                raise pytest.UsageError(f"ini value gradmask_{option.name}: {error}") from error
        values[option.name] = value
    for flag in FLAGS:
        value = config.getoption(flag)
        values[flag] = bool(config.getini(flag)) if value is None else value
    # Set on a worker of pytest-xdist. Its name is gwN unless --tx says otherwise.
    xdist = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    number = str(xdist["workerid"]).removeprefix("gw")
    settings = Settings(
        enabled=values.pop("gradmask"),
        strict=values.pop("gradmask_strict"),
        download=values.pop("gradmask_download"),
        no_cache=values.pop("gradmask_no_cache"),
        worker=int(number) if number.isdecimal() else 0,
        workers=xdist["workercount"],
        baseline_update=values.pop("gradmask_baseline_update"),
        **values,
    )
    if settings.baseline_update and settings.baseline is None:
        raise pytest.UsageError("--gradmask-baseline-update: say which file to write, with --gradmask-baseline=FILE")
    if settings.adversarial is not None and settings.html is None:
        raise pytest.UsageError("--gradmask-adversarial: say where the report goes, too, with --gradmask-html=FILE")
    _check_files({name: getattr(settings, name) for name in ("json", "html", "badge", "sarif", "baseline")})
    if settings.enabled:
        _check_machine(settings)
    return settings


def _from_ini(config: pytest.Config, path: str) -> str:
    """A path of the ini file as it is from here. It is relative to that file, so that it is the same everywhere."""
    folder = config.rootpath if config.inipath is None else config.inipath.parent
    return path if path[:1] in ("/", "~") or folder == Path.cwd() else os.path.relpath(folder / path)


#: Options that only tests with a certain fixture notice.
_FIXTURES = {"model": "gradmask_model", "data": "eval_batch", "samples": "eval_batch"}


def check_options_are_used(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Check that what the command line says about models and images reaches a test.

    Otherwise a verdict would be taken for that of a model that no test has seen.

    Raises:
        pytest.UsageError: an option is given, and no selected test uses the fixture that it is for.
    """
    for option, fixture in _FIXTURES.items():
        value = config.getoption(f"gradmask_{option}")
        if value is not None and not any(_uses(item, fixture) for item in items):
            raise pytest.UsageError(
                f"--gradmask-{option}={value}: no selected test uses the fixture {fixture}, so the option would change "
                f"nothing; take {fixture} as an argument of the test, or leave the option out"
            )


#: How many calls deep code is searched for the name of a fixture: a test, a helper, and what the helper calls.
_DEPTH = 3


def _uses(item: pytest.Item, fixture: str) -> bool:
    """Whether a test has a fixture among its own and those that they need, or may ask for it by name while it runs."""
    if fixture in getattr(item, "fixturenames", ()):
        return True
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).values()
    functions = [getattr(item, "function", None), *(one.func for several in definitions for one in several)]
    own = [each for each in functions if not getattr(each, "__module__", "").startswith(f"{__package__}.")]
    return any(_mentions(each, fixture, _DEPTH) for each in own)


def _mentions(function: object, text: str, depth: int) -> bool:
    """Whether a text is a constant in the code of a function, or of those that it calls by their names."""
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return False
    called = [names.get(name) for name in code.co_names] if depth > 1 else []
    return text in code.co_consts or any(_mentions(each, text, depth - 1) for each in called)


#: Options that change what an audit finds.
_DECISIVE = ("budget", "data", "model", "samples", "attempt", "seed", "device")


def reproducing(config: pytest.Config, test: str) -> str:
    """The command that repeats the audits of one test: with those options of this run that change what they find."""
    given = {name: config.getoption(f"gradmask_{name}") for name in _DECISIVE}
    options = [f"--gradmask-{name}={value}" for name, value in given.items() if value is not None]
    return shlex.join(["pytest", test, "--gradmask", *options])


def _check_files(files: dict[str, Path | None]) -> None:
    """Refuse one file for two options.

    If the baseline were also an output, each run would be compared with the run before it.
    """
    options: dict[Path, str] = {}
    for name, file in files.items():
        if file is not None and options.setdefault(file.resolve(), name) != name:
            raise pytest.UsageError(
                f"--gradmask-{name}={file}: is the file of --gradmask-{options[file.resolve()]}, too; use two"
            )


def _check_machine(settings: Settings) -> None:
    """Check what needs torch. This is done only if audits run."""
    if importlib.util.find_spec("torch") is None:
        raise pytest.UsageError("--gradmask needs PyTorch; install it with pip install torch torchvision")
    if settings.html is not None:
        _check_report()
    if settings.device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(settings.device.partition(":")[2] or 0)
        if index >= count:
            raise pytest.UsageError(
                f"--gradmask-device={settings.device}: torch sees {count} CUDA devices here; use --gradmask-device=auto"
            )
    for option, check, value in (
        ("engine", check_engine, settings.engine),
        ("data", specs.check_data, settings.data),
        ("model", specs.check_model, settings.model),
    ):
        try:
            if value is not None:
                check(value)
        except (InputError, DependencyError, EngineError) as error:
            raise pytest.UsageError(f"--gradmask-{option}: {error}") from error


def _check_report() -> None:
    """Check that the packages of the HTML report are installed, before audits run for hours."""
    missing = [name for name in ("jinja2", "markdown_it", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise pytest.UsageError(
            f"--gradmask-html needs {', '.join(missing)}; install what it needs with "
            "pip install 'pytest-gradmask[report]'"
        )
