"""Files and code that are damaged, hostile or much too large: an error of ours, soon and without much memory."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pytest_gradmask import (
    CheckpointError,
    DataError,
    DefenseError,
    InputError,
    ThreatModel,
    audit,
    load_dataset,
    load_model,
)
from pytest_gradmask.attacks.autoattack import square
from pytest_gradmask.errors import GradmaskError
from pytest_gradmask.loading.checkpoints import _sealed, load_checkpoint, save_card
from tests.toys import IMAGES, audited, draw, linear, seeded

# cards


def card(folder: Path, content: dict[str, Any]) -> None:
    (folder / "it.safetensors").write_bytes(b"")
    (folder / "it.json").write_text(_sealed({"sha256": sha256_of_nothing(), **content}))


def sha256_of_nothing() -> str:
    import hashlib

    return hashlib.sha256(b"").hexdigest()


CARDS: dict[str, dict[str, Any]] = {
    "list as architecture": {"architecture": ["resnet"]},
    "object as architecture": {"architecture": {}},
    "number as architecture": {"architecture": 3},
    "list as arguments": {"architecture": "resnet", "arguments": [1, 2]},
    "text as arguments": {"architecture": "resnet", "arguments": "width"},
    "huge width": {"architecture": "dncnn", "arguments": {"width": 10**9}},
    "negative width": {"architecture": "dncnn", "arguments": {"width": -3}},
    "text as width": {"architecture": "dncnn", "arguments": {"width": "x"}},
    "object as part": {"architecture": "composite", "front_end": {}, "backbone": []},
    "number as members": {"architecture": "ensemble", "members": 3},
    "large and wrong": {"architecture": "dncnn", "arguments": {"width": 9000}},
}


@pytest.mark.parametrize("content", CARDS.values(), ids=CARDS)
def test_cards(content: dict[str, Any], tmp_path: Path) -> None:
    card(tmp_path, content)
    with pytest.raises(GradmaskError):
        load_checkpoint("it", tmp_path)


def test_card_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"architecture": ' + "[" * 20_000 + "]" * 20_000 + "}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint("it", tmp_path)


def test_ensemble_without_members(tmp_path: Path) -> None:
    save_card("it", {"architecture": "ensemble", "members": []}, tmp_path)
    with pytest.raises(GradmaskError, match="at least 2"):
        load_checkpoint("it", tmp_path)


# weights

WEIGHTS: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.zeros(4, 3).to_sparse(),
    "meta": lambda: torch.zeros(4, 3, device="meta"),
    "complex": lambda: torch.zeros(4, 3, dtype=torch.complex64),
}


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_another_kind(make: Callable[[], Any], tmp_path: Path) -> None:
    torch.save({"weight": make()}, tmp_path / "it.pth")
    with pytest.raises(CheckpointError, match=r"must be a plain tensor|cannot be read"):
        load_model(f"timm:resnet18@{tmp_path / 'it.pth'}")


def test_weights_of_two_million_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    state = timm.create_model("test_resnet").state_dict()
    last = list(state)[-2:]
    for name, shape in zip(last, [(200, state[last[0]].shape[1]), (200,)], strict=True):
        state[name] = torch.zeros(shape)
    torch.save(state, tmp_path / "it.pth")
    monkeypatch.setenv("GRADMASK_MAX_CLASSES", "199")
    with pytest.raises(InputError, match=r"has 200 classes, more than the limit of 199.*GRADMASK_MAX_CLASSES=200"):
        load_model(f"timm:test_resnet@{tmp_path / 'it.pth'}")
    monkeypatch.setenv("GRADMASK_MAX_CLASSES", "200")
    assert load_model(f"timm:test_resnet@{tmp_path / 'it.pth'}")(torch.zeros(1, 3, 64, 64)).shape == (1, 200)


def test_limit_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADMASK_MAX_PIXELS", "many")
    picture(tmp_path, Image.new("RGB", (4, 4)))
    with pytest.raises(InputError, match="GRADMASK_MAX_PIXELS='many'"):
        load_dataset(f"imagefolder:{tmp_path}")


# arrays


def header_of(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_header_that_promises_too_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "it.npz", "w") as archive:
        archive.writestr("images.npy", header_of((10**8, 32, 32, 3)))
        archive.writestr("labels.npy", header_of((10**8,), "<i8"))
    with pytest.raises(DataError, match="is said to have 307200000000 bytes, and holds"):
        load_dataset(f"npz:{tmp_path / 'it.npz'}")


def test_array_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "it.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.zeros(2, np.int64))
    assert len(load_dataset(f"npz:{tmp_path / 'it.npz'}")) == 2
    monkeypatch.setenv("GRADMASK_MAX_BYTES", "95")
    with pytest.raises(InputError, match="has 96 bytes, more than the limit of 95"):
        load_dataset(f"npz:{tmp_path / 'it.npz'}")


@pytest.mark.parametrize("method", [6, 99])
def test_unknown_zip_method(method: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "it.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.zeros(2, np.int64))
    data = bytearray((tmp_path / "it.npz").read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.find(mark)
        while at >= 0:
            data[at + place : at + place + 2] = struct.pack("<H", method)
            at = data.find(mark, at + 1)
    (tmp_path / "it.npz").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as npz"):
        load_dataset(f"npz:{tmp_path / 'it.npz'}")


# images


def picture(folder: Path, image: Image.Image, name: str = "a.png") -> None:
    (folder / "class").mkdir(exist_ok=True)
    image.save(folder / "class" / name)


def test_grey_of_16_bits_keeps_its_values(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    picture(tmp_path, Image.fromarray(ramp))
    [image] = load_dataset(f"imagefolder:{tmp_path}").images
    assert image[0].numpy() == pytest.approx(ramp / 65535, abs=1 / 510 + 1e-6)
    assert torch.equal(image[0], image[2])


def test_colours_and_grey_of_8_bits_are_as_they_were(tmp_path: Path) -> None:
    pixels = (draw(8, 8, 3) * 255).byte().numpy()
    picture(tmp_path, Image.fromarray(pixels))
    [image] = load_dataset(f"imagefolder:{tmp_path}").images
    assert torch.equal((image * 255).round().byte().permute(1, 2, 0), torch.from_numpy(pixels))
    picture(tmp_path, Image.fromarray(pixels[:, :, 0]))
    [image] = load_dataset(f"imagefolder:{tmp_path}").images
    assert torch.equal((image[1] * 255).round().byte(), torch.from_numpy(pixels[:, :, 0].copy()))


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    picture(tmp_path, Image.fromarray(np.full((8, 8), 0.5, np.float32)), "a.tiff")
    with pytest.raises(DataError, match="have the mode F"):
        load_dataset(f"imagefolder:{tmp_path}")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "class" / "a.png").write_bytes(data)
    with pytest.raises((InputError, DataError), match=r"144000000 pixels|decompression bomb"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_list_of_labels_with_huge_names(tmp_path: Path) -> None:
    for name in ("x" * 100_000, "a\0b"):
        (tmp_path / "labels.txt").write_text(f"{name} 3\n")
        with pytest.raises(DataError, match="line 1 names") as error:
            load_dataset(f"imagenet:{tmp_path}")
        assert len(str(error.value)) < 1000


# code

MODULES = {
    "exits": "raise SystemExit(3)",
    "raises": "raise ZeroDivisionError('odd')",
    "getattr_raises": "def __getattr__(name): raise ZeroDivisionError('odd')",
    "getattr_exits": "import sys\ndef __getattr__(name): sys.exit()",
    "call_exits": "import sys\ndef make(): sys.exit()",
    "odd_class": (
        "class Odd:\n    @property\n    def __class__(self): raise ZeroDivisionError\n"
        "    def __call__(self): return 3\nmake = Odd()"
    ),
    "on_meta": "import torch\nmake = torch.nn.Linear(2, 2, device='meta')",
    "repr_raises": "class Odd:\n    def __repr__(self): raise ZeroDivisionError\nmake = Odd()",
    "no_length": (
        "import torch\nclass D(torch.utils.data.Dataset):\n    def __len__(self): raise ZeroDivisionError\nmake = D()"
    ),
}


LOADERS = [lambda target: load_model(f"import:{target}"), lambda target: load_dataset(f"dataset:{target}")]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("load", LOADERS)
def test_code_of_the_user(
    name: str, load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"odd_{name}.py").write_text(MODULES[name])
    try:
        with pytest.raises(GradmaskError):
            load(f"odd_{name}:make")
    finally:
        sys.modules.pop(f"odd_{name}", None)


# models


def test_weights_made_in_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    with pytest.raises(DefenseError, match=r"'1.weight' was made under torch.inference_mode\(\)"):
        audited(model, labels=torch.zeros(24, dtype=torch.long))


def test_weights_on_meta_are_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, device="meta")).eval()
    with pytest.raises(DefenseError, match="on the device meta"):
        audit(model, IMAGES, torch.zeros(24, dtype=torch.long))


def test_lazy_weights_are_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).eval()
    with pytest.raises(DefenseError, match=r"'1.weight' has no shape yet, .* call the model once"):
        audit(model, IMAGES, torch.zeros(24, dtype=torch.long))
    model(IMAGES)
    audit(model, IMAGES, torch.zeros(24, dtype=torch.long))


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (2, 9), (1, 30), (3, 3)])
def test_square_attacks_small_images(side: tuple[int, int]) -> None:
    images, threat = draw(6, 3, *side), ThreatModel(0.5, "L2")
    model = linear(shape=(3, *side))
    returned = square(model, images, model(images).argmax(1), threat=threat, steps=30, generator=seeded())
    assert returned.shape == images.shape
    assert returned.isfinite().all()
    assert threat.contains(returned, images).all()
    assert not torch.equal(returned, images)


def test_cards_are_json(tmp_path: Path) -> None:
    save_card("it", {"architecture": "ensemble", "members": ["a", "b"]}, tmp_path)
    assert json.loads((tmp_path / "it.json").read_text())["members"] == ["a", "b"]
