"""Parse the one-line specifications of models and data. Without torch: pytest reads options at every start.

The specification of a model is one of these:

=====================================  ==============================================================
``NAME``                               a trained model of the package's fixtures
``checkpoint:FILE.json``               a card of `checkpoints`, with its weights or parts in the same folder
``timm:NAME``                          a classifier of timm with its pretrained weights
``timm:NAME@FILE``                     the same with weights from a local file
``timm:hf-hub:ORG/NAME[@REVISION]``    a classifier of the Hugging Face Hub, by timm
``torchvision:NAME[.WEIGHTS][@FILE]``  a classifier of torchvision, with its default weights or others
``robustbench:NAME``                   a model of RobustBench for CIFAR-10, Linf
``robustbench:DATASET/THREAT/NAME``    any model of RobustBench
``onnx:FILE``                          a model that ONNX Runtime runs, without a gradient: see `black_box`
``import:MODULE:ATTR``                 a module of the user, or a function that returns one
=====================================  ==============================================================

The table of data sets is in `pytest_gradmask.loading.datasets`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from pytest_gradmask.checks import check_is
from pytest_gradmask.errors import DependencyError, InputError

MODELS = (
    "a fixture's NAME, checkpoint:FILE.json, timm:NAME[@FILE], timm:hf-hub:ORG/NAME, torchvision:NAME[@FILE], "
    "robustbench:[DATASET/THREAT/]NAME, onnx:FILE or import:MODULE:ATTR"
)
DATA = (
    "embedded, cifar10[:ROOT], cifar100[:ROOT], imagenet:DIR, imagefolder:DIR, npz:FILE or dataset:MODULE:ATTR "
    "(folders of images take ?size=224&resize=256)"
)
_MODEL_KINDS = ("checkpoint", "timm", "torchvision", "robustbench", "onnx", "import")
_FOLDERS = ("imagefolder", "imagenet")
_DATA_KINDS = ("embedded", "cifar10", "cifar100", *_FOLDERS, "npz", "dataset")
_BENCH_DATA = ("cifar10", "cifar100", "imagenet")
_BENCH_THREATS = ("Linf", "L2", "corruptions")
#: The shorter side is resized to the crop size divided by this number, as is usual for ImageNet classifiers.
_CROP_SHARE = 0.875


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The parsed specification of a model.

    Attributes:
        text: the specification.
        kind: ``"fixture"``, or the part before the first colon.
        name: the part after it, without the file. For RobustBench always ``DATASET/THREAT/NAME``.
        file: file of weights or of a card.
    """

    text: str
    kind: str
    name: str
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The parsed specification of a data set.

    Attributes:
        text: the specification.
        kind: the part before the first colon.
        path: the part after it, without options; may be empty.
        crop: for folders of images: the length of the shorter side after resizing, and the size of the centre crop, in
            pixels. None leaves images as they are.
        labels: file with the labels of an ImageNet folder, if the specification names one.
    """

    text: str
    kind: str
    path: str = ""
    crop: tuple[int, int] | None = None
    labels: Path | None = None


def parse_model(text: str) -> ModelSpec:
    """Parse the specification of a model, without checking that its files exist.

    Raises:
        InputError: it is not a valid specification.
    """
    check_is("spec", text, f"a text: {MODELS}", str)
    kind, colon, name = text.partition(":")
    if not colon:
        kind, name = "fixture", text
    elif kind not in _MODEL_KINDS:
        raise InputError(f"model {text!r}: unknown kind {kind!r}; use {MODELS}")
    file = None
    if kind in ("checkpoint", "onnx"):
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


def _path(what: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{what}: {path!r} starts with the home of an unknown user") from error


def _check_target(what: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise InputError(f"{what}: {target!r} is no MODULE:ATTR, such as my_project.models:load_defense")


def parse_data(text: str) -> DataSpec:
    """Parse the specification of a data set, without checking that its files exist.

    Raises:
        InputError: it is not a valid specification, or has options that its kind does not take.
    """
    check_is("spec", text, f"a text: {DATA}", str)
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
        return DataSpec(text=text, kind=kind, path=path)
    path, _, query = path.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = ("size", "resize", "labels") if kind == "imagenet" else ("size", "resize")
    if set(options) - set(allowed) or bool(query) != bool(options):
        raise InputError(f"data {text!r}: options are {', '.join(allowed)}, as in {kind}:DIR?size=224&resize=256")
    labels = _path(f"data {text!r}", options["labels"]) if options.get("labels") else None
    return DataSpec(text=text, kind=kind, path=path, crop=_crop(text, kind, options), labels=labels)


def _crop(text: str, kind: str, options: dict[str, str]) -> tuple[int, int] | None:
    pixels = {name: options[name] for name in ("size", "resize") if name in options}
    if kind == "imagefolder" and not pixels:
        return None
    for name, value in pixels.items():
        if not value.isdecimal() or int(value) < 1:
            raise InputError(f"data {text!r}: {name}={value} is not a whole number of pixels of at least 1")
    size = int(pixels.get("size", 224))
    resize = int(pixels.get("resize", round(size / _CROP_SHARE)))
    if size > resize:
        raise InputError(f"data {text!r}: size={size} is more than resize={resize}, so there is nothing to crop from")
    return resize, size


def check_model(text: str) -> ModelSpec:
    """Parse the specification of a model and check that its files exist.

    Raises:
        InputError: it is not a valid specification, or a file is missing.
        DependencyError: it needs RobustBench, which is not installed.
    """
    spec = parse_model(text)
    if spec.file is not None and not os.path.isfile(spec.file):
        raise InputError(f"model {text!r}: no such file: {spec.file}")
    if spec.kind == "robustbench" and importlib.util.find_spec("robustbench") is None:
        raise DependencyError(f"model {text!r}: needs RobustBench; install it with pip install robustbench")
    return spec


def check_data(text: str) -> DataSpec:
    """Parse the specification of a data set and check that its files exist.

    Raises:
        InputError: it is not a valid specification, or a path is missing.
    """
    spec = parse_data(text)
    if spec.kind in (*_FOLDERS, "npz"):
        path = _path(f"data {text!r}", spec.path)
        # Not the methods of pathlib, which raise an error if a name is too long.
        if not (os.path.isfile(path) if spec.kind == "npz" else os.path.isdir(path)):
            what = "file" if spec.kind == "npz" else "directory"
            raise InputError(f"data {text!r}: no such {what}: {path}")
    if spec.labels is not None and not os.path.isfile(spec.labels):
        raise InputError(f"data {text!r}: no such file: {spec.labels}")
    return spec
