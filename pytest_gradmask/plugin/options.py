"""Command-line options and ini values: their names, defaults and parsers. No torch: this runs at every pytest start."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.errors import InputError
from pytest_gradmask.execution.engine import ray_address
from pytest_gradmask.execution.precision import Precision, check_precision
from pytest_gradmask.loading import specs
from pytest_gradmask.plugin.starter import import_path


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
    return _checked_syntax(specs.parse_data, value)


def _model(value: str) -> str:
    return _checked_syntax(specs.parse_model, value)


def _checked_syntax(parse: Callable[[str], object], value: str) -> str:
    # Only the syntax. Whether the files exist is checked if audits run: other runs do not need them.
    try:
        parse(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _from_one(value: str) -> int:
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


def _precision(value: str) -> str:
    return _checked_syntax(check_precision, value)


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _duration(value: str) -> float:
    number, unit = (value[:-1], value[-1]) if value[-1:] in ("s", "m", "h") else (value, "")
    try:
        seconds = _UNITS[unit] * _timeout(number)
    except argparse.ArgumentTypeError:
        seconds = 0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a time such as 90, 90s, 10m or 2h")
    return seconds


def _path(value: str) -> Path:
    try:
        return Path(value).expanduser()  # no shell does so behind a "="
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{value!r} starts with the home of an unknown user") from error


def _file(value: str) -> Path:
    file = _path(value)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{value!r} is not a file in an existing directory")
    _check_writable(value, file.absolute().parent)
    return file


def _check_writable(value: str, folder: Path) -> None:
    """Refuse a place before audits run for hours."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is in a directory that cannot be written to ({error})") from error


def _folder(value: str) -> Path:
    folder = _path(value)
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{value!r} is not a directory")
    return folder


def _output_folder(value: str) -> Path:
    folder = _folder(value)
    _check_writable(value, next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()))
    return folder


def _engine(value: str) -> str:
    try:
        ray_address(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not local, ray, ray:HOST:PORT or ray:auto") from error
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option with a value, and the ini value of the same name.

    Attributes:
        name: without ``--gradmask-`` or ``gradmask_``.
        default: as text; empty for none.
        parse: from text to the value; raises `argparse.ArgumentTypeError`.
        metavar: the value's name in ``pytest --help``.
        help: what the option does.
    """

    name: str
    default: str = ""
    parse: Callable[[str], Any]
    metavar: str
    help: str


#: Options without a value. The ini value of ``--gradmask-no-cache`` is ``gradmask_no_cache``, and so on.
FLAGS = ("gradmask", "gradmask_download", "gradmask_no_cache", "gradmask_baseline_update", "gradmask_strict")

OPTIONS = (
    Option(
        name="budget",
        default="smoke",
        parse=_budget,
        metavar="{" + ",".join(BUDGETS) + "}",
        help="how hard audits try (default: smoke)",
    ),
    Option(
        name="device",
        default="auto",
        parse=_device,
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N (default: auto, a GPU if there is one)",
    ),
    Option(
        name="data",
        default="embedded",
        parse=_data,
        metavar="DATA",
        help=f"evaluation images: {specs.DATA} (default: embedded, 20 of CIFAR-10)",
    ),
    Option(
        name="model", parse=_model, metavar="MODEL", help=f"the model of the fixture gradmask_model: {specs.MODELS}"
    ),
    Option(
        name="samples",
        parse=_from_one,
        metavar="N",
        help="how many images to evaluate (default: the budget's number)",
    ),
    Option(
        name="attempt",
        default="1",
        parse=_from_one,
        metavar="N",
        help="which audit of the same defenses this is: repeated audits share the error (default: 1)",
    ),
    Option(name="seed", default="0", parse=_seed, metavar="N", help="seed of every random choice (default: 0)"),
    Option(name="json", parse=_file, metavar="FILE", help="write every audit to FILE as JSON"),
    Option(name="badge", parse=_file, metavar="FILE", help="write a badge to FILE: JSON for an endpoint of shields.io"),
    Option(
        name="sarif",
        parse=_file,
        metavar="FILE",
        help="write masks to FILE as SARIF, at the lines that hide a gradient",
    ),
    Option(
        name="baseline",
        parse=_file,
        metavar="FILE",
        help="fail if an audit is worse than in FILE, written by --gradmask-json",
    ),
    Option(
        name="html",
        parse=_file,
        metavar="FILE",
        help="write a report of every audit to FILE, with pictures (takes longer)",
    ),
    Option(
        name="adversarial",
        parse=_output_folder,
        metavar="DIR",
        help="save adversarial images to DIR, a file for each audit in the report of --gradmask-html",
    ),
    Option(
        name="cache",
        parse=_folder,
        metavar="DIR",
        help="store results in DIR (default: in pytest's cache directory)",
    ),
    Option(name="history", parse=_output_folder, metavar="DIR", help="keep every run in DIR, to be drawn over time"),
    Option(
        name="timeout",
        parse=_timeout,
        metavar="SECONDS",
        help="end an audit after so many seconds, as INCONCLUSIVE (default: never)",
    ),
    Option(
        name="deadline",
        parse=_duration,
        metavar="TIME",
        help="share so much time among all audits, such as 90s or 10m; what is open then is INCONCLUSIVE, with bounds "
        "(default: none)",
    ),
    Option(
        name="precision",
        default="auto",
        parse=_precision,
        metavar="{" + ",".join(get_args(Precision)) + "}",
        help="in which defenses compute under attack; scores are always in their own (default: auto)",
    ),
    Option(
        name="engine",
        default="local",
        parse=_engine,
        metavar="ENGINE",
        help="where attacks run: local, ray (the cluster of RAY_ADDRESS, or one of this machine alone) or ray:ADDRESS",
    ),
)
#: Names of those whose value is a file or a folder.
PATHS = {option.name for option in OPTIONS if option.parse in (_file, _folder, _output_folder)}


def add_options(parser: pytest.Parser) -> None:
    """Register each option and the ini value of the same name: ``--gradmask-budget`` and ``gradmask_budget``."""
    group = parser.getgroup("gradmask", "gradient masking audits")
    group.addoption("--gradmask", action="store_true", default=None, help="run audits: tests marked gradmask")
    group.addoption(
        "--gradmask-download", action="store_true", default=None, help="download missing data and pretrained weights"
    )
    group.addoption(
        "--gradmask-no-cache", action="store_true", default=None, help="neither use stored results nor store new ones"
    )
    group.addoption(
        "--gradmask-baseline-update",
        action="store_true",
        default=None,
        help="write the file of --gradmask-baseline anew instead of comparing with it",
    )
    group.addoption(
        "--gradmask-strict", action="store_true", default=None, help="fail tests that audit and assert nothing"
    )
    group.addoption(
        "--gradmask-init",
        type=import_path,
        metavar="MODULE:ATTR",
        default=None,
        help="write a first test of this model (or function that returns one) to test_gradient_masking.py, and exit",
    )
    group.addoption(
        "--gradmask-explain",
        metavar="FINDING",
        default=None,
        help="print what a finding means, when it is raised and what to do about it, and exit",
    )
    parser.addini("gradmask", "run audits, as --gradmask does", type="bool", default=False)
    parser.addini("gradmask_download", "download what is missing", type="bool", default=False)
    parser.addini("gradmask_no_cache", "audit anew, as --gradmask-no-cache does", type="bool", default=False)
    parser.addini("gradmask_baseline_update", "as --gradmask-baseline-update does", type="bool", default=False)
    parser.addini("gradmask_strict", "fail tests that audit and assert nothing", type="bool", default=False)
    for option in OPTIONS:
        group.addoption(
            f"--gradmask-{option.name}", type=option.parse, metavar=option.metavar, default=None, help=option.help
        )
        parser.addini(f"gradmask_{option.name}", f"default of --gradmask-{option.name}", default=option.default)
