"""Options and ini values -> `Settings`. No torch: this runs at every pytest start."""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.errors import DependencyError, EngineError, InputError
from pytest_gradmask.execution.engine import check_engine, ray_address
from pytest_gradmask.loading import specs
from pytest_gradmask.plugin.starter import import_path


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked for.

    Attributes:
        enabled: whether audits run at all.
        budget: name of the budget.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        data: specification of the evaluation images.
        model: specification of the model of the fixture ``gradmask_model``; None if it was not given.
        samples: how many of them; None for the budget's number, or all where there are fewer.
        seed: of every random choice.
        json: file to write audits to.
        badge: file to write a badge to.
        baseline: file with audits to compare with.
        baseline_update: whether to write that file anew instead.
        html: file to write a report to, with pictures.
        download: whether missing data and pretrained weights may be downloaded.
        cache: folder to keep results in; None for pytest's own cache.
        no_cache: whether to keep none and use none.
        timeout: seconds that an audit may take; None for any.
        engine: where attacks run: ``"local"``, ``"ray"`` or ``"ray:ADDRESS"``.
        worker: number of this worker of pytest-xdist; 0 without it.
        workers: how many there are; 1 without it.
    """

    enabled: bool
    budget: str
    device: str
    data: str
    model: str | None
    samples: int | None
    seed: int
    json: Path | None
    badge: Path | None
    baseline: Path | None
    baseline_update: bool
    html: Path | None
    download: bool
    cache: Path | None
    no_cache: bool
    timeout: float | None
    engine: str
    worker: int = 0
    workers: int = 1

    @property
    def torch_device(self) -> str:
        """``device`` with ``auto`` resolved and, under xdist, a GPU for each worker, in turn. Imports torch."""
        if self.device not in ("auto", "cuda"):
            return self.device
        import torch

        if not torch.cuda.is_available():
            return "cpu" if self.device == "auto" else self.device
        # On a cluster, Ray chooses.
        if self.workers == 1 or self.engine != "local":
            return "cuda"
        return f"cuda:{self.worker % torch.cuda.device_count()}"


def _budget(value: str) -> str:
    if value not in BUDGETS:
        raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(BUDGETS)}")
    return value


def _device(value: str) -> str:
    kind, _, index = value.partition(":")
    if value not in ("auto", "cpu") and not (kind == "cuda" and (index.isdigit() or ":" not in value)):
        raise argparse.ArgumentTypeError(f"{value!r} is not auto, cpu, cuda or cuda:N")
    return value


def _data(value: str) -> str:
    return _spelled(specs.parse_data, value)


def _model(value: str) -> str:
    return _spelled(specs.parse_model, value)


def _spelled(parse: Callable[[str], object], value: str) -> str:
    # Whether files are there is checked where audits will run: other runs are none of our business.
    try:
        parse(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _samples(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _seed(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 0")
    return int(value)


def _timeout(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds above 0")
    return seconds


def _file(value: str) -> Path:
    file = Path(value)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{value!r} is not a file in an existing directory")
    try:
        tempfile.TemporaryFile(dir=file.absolute().parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is in a directory that cannot be written to ({error})") from error
    return file


def _folder(value: str) -> Path:
    folder = Path(value)
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{value!r} is not a directory")
    return folder


def _engine(value: str) -> str:
    try:
        ray_address(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not local, ray, ray:HOST:PORT or ray:auto") from error
    return value


@dataclass(frozen=True, slots=True)
class _Option:
    name: str
    default: str
    parse: Callable[[str], Any]
    metavar: str
    help: str


_OPTIONS = (
    _Option("budget", "smoke", _budget, "{" + ",".join(BUDGETS) + "}", "how hard audits try (default: smoke)"),
    _Option("device", "auto", _device, "DEVICE", "auto, cpu, cuda or cuda:N (default: auto, a GPU where there is one)"),
    _Option(
        "data",
        "embedded",
        _data,
        "DATA",
        f"evaluation images: {specs.DATA} (default: embedded, 20 of CIFAR-10)",
    ),
    _Option("model", "", _model, "MODEL", f"the model of the fixture gradmask_model: {specs.MODELS}"),
    _Option("samples", "", _samples, "N", "how many images to evaluate (default: the budget's number)"),
    _Option("seed", "0", _seed, "N", "seed of every random choice (default: 0)"),
    _Option("json", "", _file, "FILE", "write every audit to FILE as JSON"),
    _Option("badge", "", _file, "FILE", "write a badge to FILE: JSON for an endpoint of shields.io"),
    _Option("baseline", "", _file, "FILE", "fail if an audit is worse than in FILE, written by --gradmask-json"),
    _Option("html", "", _file, "FILE", "write a report of every audit to FILE, with pictures (takes longer)"),
    _Option("cache", "", _folder, "DIR", "keep results in DIR (default: in pytest's cache directory)"),
    _Option("timeout", "", _timeout, "SECONDS", "end an audit after so many seconds, as INCONCLUSIVE (default: never)"),
    _Option(
        "engine",
        "local",
        _engine,
        "ENGINE",
        "where attacks run: local, ray (the cluster of RAY_ADDRESS, or one of this machine alone) or ray:ADDRESS",
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Register options and their ini twins: ``--gradmask-budget`` and ``gradmask_budget``, and so on."""
    group = parser.getgroup("gradmask", "gradient masking audits")
    group.addoption("--gradmask", action="store_true", default=None, help="run audits: tests marked gradmask")
    group.addoption(
        "--gradmask-download", action="store_true", default=None, help="download missing data and pretrained weights"
    )
    group.addoption("--gradmask-no-cache", action="store_true", default=None, help="audit anew, and keep no results")
    group.addoption(
        "--gradmask-baseline-update",
        action="store_true",
        default=None,
        help="write the file of --gradmask-baseline anew instead of comparing with it",
    )
    group.addoption(
        "--gradmask-init",
        type=import_path,
        metavar="MODULE:ATTR",
        default=None,
        help="write a first test of this model (or function that returns one) to test_gradient_masking.py, and exit",
    )
    parser.addini("gradmask", "run audits, as --gradmask does", type="bool", default=False)
    parser.addini("gradmask_download", "download what is missing", type="bool", default=False)
    parser.addini("gradmask_no_cache", "audit anew, as --gradmask-no-cache does", type="bool", default=False)
    parser.addini("gradmask_baseline_update", "as --gradmask-baseline-update does", type="bool", default=False)
    for option in _OPTIONS:
        group.addoption(
            f"--gradmask-{option.name}", type=option.parse, metavar=option.metavar, default=None, help=option.help
        )
        parser.addini(f"gradmask_{option.name}", f"default of --gradmask-{option.name}", default=option.default)


def read_settings(config: pytest.Config) -> Settings:
    """Command line before ini file before default.

    Raises:
        pytest.UsageError: an ini value that the option would not take, CUDA asked for where there is none, a cluster
            that does not answer, data or a model's file that is not there, or one file for two things.
    """
    values: dict[str, Any] = {}
    for option in _OPTIONS:
        value = config.getoption(f"gradmask_{option.name}")
        if value is None:
            text = str(config.getini(f"gradmask_{option.name}"))
            try:
                value = option.parse(text) if text else None
            except argparse.ArgumentTypeError as error:
                raise pytest.UsageError(f"ini value gradmask_{option.name}: {error}") from error
        values[option.name] = value
    for flag in ("gradmask", "gradmask_download", "gradmask_no_cache", "gradmask_baseline_update"):
        given = config.getoption(flag)
        values[flag] = bool(config.getini(flag)) if given is None else given
    # Of a worker of pytest-xdist; its name is gwN unless --tx says otherwise.
    xdist = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    number = str(xdist["workerid"]).removeprefix("gw")
    settings = Settings(
        enabled=values.pop("gradmask"),
        download=values.pop("gradmask_download"),
        no_cache=values.pop("gradmask_no_cache"),
        worker=int(number) if number.isdecimal() else 0,
        workers=xdist["workercount"],
        baseline_update=values.pop("gradmask_baseline_update"),
        **values,
    )
    if settings.baseline_update and settings.baseline is None:
        raise pytest.UsageError("--gradmask-baseline-update: say which file to write, with --gradmask-baseline=FILE")
    _check_files({name: getattr(settings, name) for name in ("json", "html", "badge", "baseline")})
    if settings.enabled:
        _check_machine(settings)
    return settings


def _check_files(files: dict[str, Path | None]) -> None:
    """A file that is compared with and written over would compare each run with the one before."""
    owners: dict[Path, str] = {}
    for name, file in files.items():
        if file is not None and owners.setdefault(file.resolve(), name) != name:
            raise pytest.UsageError(
                f"--gradmask-{name}={file}: is the file of --gradmask-{owners[file.resolve()]}, too; use two"
            )


def _check_machine(settings: Settings) -> None:
    """What can only be checked with torch, and so only where audits will run."""
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
    """What the HTML report needs, before audits run for hours."""
    missing = [name for name in ("jinja2", "markdown_it", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise pytest.UsageError(
            f"--gradmask-html needs {', '.join(missing)}; install what it needs with "
            "pip install 'pytest-gradmask[report]'"
        )
