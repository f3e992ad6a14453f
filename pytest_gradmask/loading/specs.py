"""What users name as a model or as data, in one line, taken apart. No torch: options are read at every pytest start.

A model is one of these:

=====================================  ==============================================================
``NAME``                               a trained model of the package's fixtures
``checkpoint:FILE.json``               a card of `checkpoints`, with what it describes beside it
``timm:NAME``                          a classifier of timm with its pretrained weights
``timm:NAME@FILE``                     the same with weights from a local file
``timm:hf-hub:ORG/NAME[@REVISION]``    a classifier of the Hugging Face Hub, by timm
``torchvision:NAME[.WEIGHTS][@FILE]``  a classifier of torchvision, with its default weights or others
``robustbench:NAME``                   a model of RobustBench for CIFAR-10, Linf
``robustbench:DATASET/THREAT/NAME``    any model of RobustBench
``import:MODULE:ATTR``                 a module of your own, or what returns one when called
=====================================  ==============================================================

`datasets` has the table of data.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from pytest_gradmask.errors import DependencyError, InputError

MODELS = (
    "a fixture's NAME, checkpoint:FILE.json, timm:NAME[@FILE], timm:hf-hub:ORG/NAME, torchvision:NAME[@FILE], "
    "robustbench:[DATASET/THREAT/]NAME or import:MODULE:ATTR"
)
DATA = (
    "embedded, cifar10[:ROOT], cifar100[:ROOT], imagenet:DIR, imagefolder:DIR, npz:FILE or dataset:MODULE:ATTR "
    "(folders of images take ?size=224&resize=256)"
)
_MODEL_KINDS = ("checkpoint", "timm", "torchvision", "robustbench", "import")
_FOLDERS = ("imagefolder", "imagenet")
_DATA_KINDS = ("embedded", "cifar10", "cifar100", *_FOLDERS, "npz", "dataset")
_BENCH_DATA = ("cifar10", "cifar100", "imagenet")
_BENCH_THREATS = ("Linf", "L2", "corruptions")
#: The shorter side is resized to the crop divided by this, as ImageNet classifiers are customarily evaluated.
_CROP_SHARE = 0.875


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's specification, taken apart.

    Attributes:
        text: as it was given.
        kind: ``"fixture"``, or what stands before the first colon.
        name: what stands behind it, without the file; of RobustBench always ``DATASET/THREAT/NAME``.
        file: of weights, or of a card.
    """

    text: str
    kind: str
    name: str
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A data set's specification, taken apart.

    Attributes:
        text: as it was given.
        kind: what stands before the first colon.
        path: what stands behind it, without options; may be empty.
        crop: of folders of images, to how many pixels the shorter side is resized, and how many of the centre are
            taken; None to take images as they are.
        labels: file of an ImageNet folder's labels, if it was named.
    """

    text: str
    kind: str
    path: str = ""
    crop: tuple[int, int] | None = None
    labels: Path | None = None


def parse_model(text: str) -> ModelSpec:
    """Take a model's specification apart; nothing is looked up.

    Raises:
        InputError: it is none.
    """
    kind, colon, name = text.partition(":")
    if not colon:
        kind, name = "fixture", text
    elif kind not in _MODEL_KINDS:
        raise InputError(f"model {text!r}: unknown kind {kind!r}; use {MODELS}")
    file = None
    if kind == "checkpoint":
        file = _path(f"model {text!r}", name)
    elif kind in ("timm", "torchvision") and not name.startswith("hf-hub:"):
        name, at, path = name.partition("@")
        if at and not path:
            raise InputError(f"model {text!r}: names no file after '@'; give {kind}:{name}@FILE")
        file = _path(f"model {text!r}", path) if path else None
    elif kind == "robustbench":
        name = _benchmark_name(text, name)
    elif kind == "import":
        _check_target(f"model {text!r}", name)
    if not name or name == "hf-hub:":
        raise InputError(f"model {text!r}: names no model; use {MODELS}")
    return ModelSpec(text, kind, name, file)


def _benchmark_name(text: str, name: str) -> str:
    parts = name.split("/")
    if len(parts) == 1:
        parts = ["cifar10", "Linf", *parts]
    if len(parts) != 3 or parts[0] not in _BENCH_DATA or parts[1] not in _BENCH_THREATS or not parts[2]:
        raise InputError(
            f"model {text!r}: give robustbench:NAME or robustbench:DATASET/THREAT/NAME, DATASET one of "
            f"{', '.join(_BENCH_DATA)}, THREAT one of {', '.join(_BENCH_THREATS)}"
        )
    return "/".join(parts)


def _path(what: str, given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise InputError(f"{what}: {given!r} starts with the home of a user whom nobody knows") from error


def _check_target(what: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise InputError(f"{what}: {target!r} is no MODULE:ATTR, such as my_project.models:load_defense")


def parse_data(text: str) -> DataSpec:
    """Take a data set's specification apart; nothing is looked up.

    Raises:
        InputError: it is none, or it has options that it does not take.
    """
    kind, _, path = text.partition(":")
    if kind not in _DATA_KINDS:
        raise InputError(f"data {text!r}: unknown kind {kind!r}; use {DATA}")
    if kind == "embedded" and path:
        raise InputError(f"data {text!r}: 'embedded' takes no path")
    if kind == "dataset":
        _check_target(f"data {text!r}", path)
    if kind in (*_FOLDERS, "npz") and not path.partition("?")[0]:
        raise InputError(f"data {text!r}: give a path, as in {kind}:PATH")
    if kind not in _FOLDERS:
        return DataSpec(text, kind, path)
    path, _, query = path.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = ("size", "resize", "labels") if kind == "imagenet" else ("size", "resize")
    if set(options) - set(allowed) or bool(query) != bool(options):
        raise InputError(f"data {text!r}: options are {', '.join(allowed)}, as in {kind}:DIR?size=224&resize=256")
    labels = _path(f"data {text!r}", options["labels"]) if options.get("labels") else None
    return DataSpec(text, kind, path, _crop(text, kind, options), labels)


def _crop(text: str, kind: str, options: dict[str, str]) -> tuple[int, int] | None:
    given = {name: options[name] for name in ("size", "resize") if name in options}
    if kind == "imagefolder" and not given:
        return None
    for name, value in given.items():
        if not value.isdecimal() or int(value) < 1:
            raise InputError(f"data {text!r}: {name}={value} is not a whole number of pixels of at least 1")
    size = int(given.get("size", 224))
    resize = int(given.get("resize", round(size / _CROP_SHARE)))
    if size > resize:
        raise InputError(f"data {text!r}: size={size} is more than resize={resize}, so there is nothing to crop from")
    return resize, size


def check_model(text: str) -> ModelSpec:
    """As `parse_model`; and files that it names must exist, and RobustBench be installed.

    Raises:
        InputError: it is none, or a file is missing.
        DependencyError: RobustBench is not installed.
    """
    spec = parse_model(text)
    if spec.file is not None and not os.path.isfile(spec.file):
        raise InputError(f"model {text!r}: no such file: {spec.file}")
    if spec.kind == "robustbench" and importlib.util.find_spec("robustbench") is None:
        raise DependencyError(f"model {text!r}: needs RobustBench; install it with pip install robustbench")
    return spec


def check_data(text: str) -> DataSpec:
    """As `parse_data`; and the path that it names, if any, must exist.

    Raises:
        InputError: it is none, or the path is missing.
    """
    spec = parse_data(text)
    if spec.kind in (*_FOLDERS, "npz"):
        wanted = _path(f"data {text!r}", spec.path)
        # Not by pathlib's methods, which raise where a name is too long.
        if not (os.path.isfile(wanted) if spec.kind == "npz" else os.path.isdir(wanted)):
            what = "file" if spec.kind == "npz" else "directory"
            raise InputError(f"data {text!r}: no such {what}: {wanted}")
    if spec.labels is not None and not os.path.isfile(spec.labels):
        raise InputError(f"data {text!r}: no such file: {spec.labels}")
    return spec
