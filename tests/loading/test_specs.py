"""Parsing specifications of models and data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_gradmask.errors import DependencyError, InputError
from pytest_gradmask.loading.specs import DataSpec, ModelSpec, check_data, check_model, parse_data, parse_model

MODELS = {
    "resnet-standard": ("fixture", "resnet-standard", None),
    "checkpoint:out/mine.json": ("checkpoint", "out/mine.json", "out/mine.json"),
    "timm:resnet18.a1_in1k": ("timm", "resnet18.a1_in1k", None),
    "timm:resnet18@some/w@1.pth": ("timm", "resnet18", "some/w@1.pth"),
    "timm:hf-hub:org/name@main": ("timm", "hf-hub:org/name@main", None),
    "torchvision:resnet50.IMAGENET1K_V1": ("torchvision", "resnet50.IMAGENET1K_V1", None),
    "robustbench:Standard": ("robustbench", "cifar10/Linf/Standard", None),
    "robustbench:imagenet/L2/X": ("robustbench", "imagenet/L2/X", None),
    "onnx:out/mine.onnx": ("onnx", "out/mine.onnx", "out/mine.onnx"),
    "import:a.b:c.d": ("import", "a.b:c.d", None),
}


@pytest.mark.parametrize(("text", "kind", "name", "file"), [(text, *parts) for text, parts in MODELS.items()])
def test_model_is_parsed(text: str, kind: str, name: str, file: str | None) -> None:
    assert parse_model(text) == ModelSpec(text, kind, name, None if file is None else Path(file))


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "": "names no model; use a fixture's NAME",
        "keras:resnet": r"unknown kind 'keras'; use .* timm:NAME\[@FILE\]",
        "timm:": "names no model",
        "timm:@file.pth": "names no model",
        "timm:hf-hub:": "names no model",
        "timm:resnet18@": r"names no file after '@'; give timm:resnet18@FILE",
        "robustbench:": "give robustbench:NAME",
        "robustbench:mnist/Linf/X": "DATASET one of cifar10",
        "robustbench:cifar10/L1/X": "THREAT one of Linf",
        "robustbench:cifar10/X": "give robustbench:NAME",
        "import:module": "is no MODULE:ATTR",
        "import::attribute": "is no MODULE:ATTR",
        "import:../file.py:model": "is no MODULE:ATTR",
        "import:a:b:c": "is no MODULE:ATTR",
    }.items(),
)
def test_a_malformed_model_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_model(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["timm:resnet18@absent.pth", "torchvision:vgg11@absent", "checkpoint:absent.json"])
def test_a_missing_file_is_named(text: str) -> None:
    with pytest.raises(InputError, match="no such file: absent"):
        check_model(text)


def test_without_robustbench_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install robustbench"):
        check_model("robustbench:Standard")


DATA = {
    "embedded": DataSpec(text="embedded", kind="embedded"),
    "cifar10:~/data": DataSpec(text="cifar10:~/data", kind="cifar10", path="~/data"),
    "npz:a?b=c": DataSpec(text="npz:a?b=c", kind="npz", path="a?b=c"),
    "imagefolder:d": DataSpec(text="imagefolder:d", kind="imagefolder", path="d"),
    "imagefolder:d?size=32&resize=32": DataSpec(
        text="imagefolder:d?size=32&resize=32", kind="imagefolder", path="d", crop=(32, 32)
    ),
    "imagenet:d": DataSpec(text="imagenet:d", kind="imagenet", path="d", crop=(256, 224)),
    "imagenet:d?size=299": DataSpec(text="imagenet:d?size=299", kind="imagenet", path="d", crop=(342, 299)),
    "imagenet:d?resize=232": DataSpec(text="imagenet:d?resize=232", kind="imagenet", path="d", crop=(232, 224)),
    "imagenet:d?labels=l.txt": DataSpec(
        text="imagenet:d?labels=l.txt", kind="imagenet", path="d", crop=(256, 224), labels=Path("l.txt")
    ),
    "dataset:a.b:c": DataSpec(text="dataset:a.b:c", kind="dataset", path="a.b:c"),
}


@pytest.mark.parametrize(("text", "wanted"), DATA.items())
def test_data_are_parsed(text: str, wanted: DataSpec) -> None:
    assert parse_data(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "imagenet:?size=3": "give a path, as in imagenet:PATH",
        "imagenet:d?colour=red": "options are size, resize, labels",
        "imagenet:d?size": "size= is not a whole number",
        "imagenet:d?&": "options are",
        "imagefolder:d?labels=x": "options are size, resize, as in imagefolder:DIR",
        "imagenet:d?size=0": "size=0 is not a whole number of pixels of at least 1",
        "imagenet:d?resize=-3": "resize=-3 is not a whole number",
        "imagenet:d?size=300&resize=256": "size=300 is more than resize=256",
        "dataset:thing": "is no MODULE:ATTR",
    }.items(),
)
def test_malformed_data_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_data(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("path", ["~no-such-user/file", "a\0b", "x" * 5000], ids=["home", "null", "long"])
def test_a_path_that_cannot_be_is_refused(path: str) -> None:
    for text in (f"npz:{path}", f"imagenet:{path}"):
        with pytest.raises(InputError, match=r"no such|unknown user"):
            check_data(text)
    with pytest.raises(InputError, match=r"no such|unknown user"):
        check_model(f"timm:resnet18@{path}")


def test_a_missing_file_of_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*none\.txt"):
        check_data(f"imagenet:{tmp_path}?labels={tmp_path / 'none.txt'}")


def test_parsing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pytest_gradmask.loading.specs import parse_data, parse_model\n"
        "parse_model('timm:resnet18'), parse_data('imagenet:d')\n"
        "print([name for name in ('torch', 'numpy', 'timm', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
