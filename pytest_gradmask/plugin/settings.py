"""Options and ini values -> `Settings`. No torch: this runs at every pytest start."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.budgets import BUDGETS
from pytest_gradmask.errors import InputError


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked for.

    Attributes:
        enabled: whether audits run at all.
        budget: name of the budget.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        data: specification of the evaluation images.
        samples: how many of them; None for the budget's number, or all where there are fewer.
        seed: of every random choice.
        json: file to write audits to.
        download: whether missing data may be downloaded.
        cache: folder to keep results in; None for pytest's own cache.
        no_cache: whether to keep none and use none.
    """

    enabled: bool
    budget: str
    device: str
    data: str
    samples: int | None
    seed: int
    json: Path | None
    download: bool
    cache: Path | None
    no_cache: bool

    @property
    def torch_device(self) -> str:
        """``device`` with ``auto`` resolved. Imports torch."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


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
    # The module would import torch, so only what needs no data is checked here; the rest is, before any test runs.
    kind = value.partition(":")[0]
    if kind not in ("embedded", "cifar10", "cifar100", "imagefolder", "npz"):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not embedded, cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR or npz:FILE"
        )
    return value


def _samples(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def _seed(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 0")
    return int(value)


def _json(value: str) -> Path:
    file = Path(value)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{value!r} is not a file in an existing directory")
    return file


def _folder(value: str) -> Path:
    folder = Path(value)
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{value!r} is not a directory")
    return folder


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
        "evaluation images: embedded (20 of CIFAR-10, default), cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR "
        "or npz:FILE",
    ),
    _Option("samples", "", _samples, "N", "how many images to evaluate (default: the budget's number)"),
    _Option("seed", "0", _seed, "N", "seed of every random choice (default: 0)"),
    _Option("json", "", _json, "FILE", "write every audit to FILE as JSON"),
    _Option("cache", "", _folder, "DIR", "keep results in DIR (default: in pytest's cache directory)"),
)


def add_options(parser: pytest.Parser) -> None:
    """Register options and their ini twins: ``--gradmask-budget`` and ``gradmask_budget``, and so on."""
    group = parser.getgroup("gradmask", "gradient masking audits")
    group.addoption("--gradmask", action="store_true", default=None, help="run audits: tests marked gradmask")
    group.addoption(
        "--gradmask-download", action="store_true", default=None, help="let torchvision download missing data"
    )
    group.addoption("--gradmask-no-cache", action="store_true", default=None, help="audit anew, and keep no results")
    parser.addini("gradmask", "run audits, as --gradmask does", type="bool", default=False)
    parser.addini("gradmask_download", "download missing data, as --gradmask-download does", type="bool", default=False)
    parser.addini("gradmask_no_cache", "audit anew, as --gradmask-no-cache does", type="bool", default=False)
    for option in _OPTIONS:
        group.addoption(
            f"--gradmask-{option.name}", type=option.parse, metavar=option.metavar, default=None, help=option.help
        )
        parser.addini(f"gradmask_{option.name}", f"default of --gradmask-{option.name}", default=option.default)


def read_settings(config: pytest.Config) -> Settings:
    """Command line before ini file before default.

    Raises:
        pytest.UsageError: an ini value that the option would not take, CUDA asked for where there is none, or data
            that is not there.
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
    for flag in ("gradmask", "gradmask_download", "gradmask_no_cache"):
        given = config.getoption(flag)
        values[flag] = bool(config.getini(flag)) if given is None else given
    settings = Settings(
        enabled=values.pop("gradmask"),
        download=values.pop("gradmask_download"),
        no_cache=values.pop("gradmask_no_cache"),
        **values,
    )
    if settings.enabled:
        _check_machine(settings)
    return settings


def _check_machine(settings: Settings) -> None:
    """What can only be checked with torch, and so only where audits will run."""
    if importlib.util.find_spec("torch") is None:
        raise pytest.UsageError("--gradmask needs PyTorch; install it with pip install torch torchvision")
    if settings.device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(settings.device.partition(":")[2] or 0)
        if index >= count:
            raise pytest.UsageError(
                f"--gradmask-device={settings.device}: torch sees {count} CUDA devices here; use --gradmask-device=auto"
            )
    from pytest_gradmask.datasets import check_spec

    try:
        check_spec(settings.data)
    except InputError as error:
        raise pytest.UsageError(f"--gradmask-data: {error}") from error
