from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.loading.checkpoints import fixtures_directory
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.loading.specs import check_data
from tests.toys import Boom

Array = np.ndarray[Any, Any]


def some_images(count: int, seed: int = 0, size: int = 8) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    file = tmp_path / "data.npz"
    np.savez(
        file,
        test_x=some_images(6),
        test_y=np.arange(6, dtype=np.uint8),
        train_x=some_images(10, seed=1),
        train_y=np.arange(10) % 3,
    )
    return file


# npz


def test_npz_gives_unit_floats_in_torch_layout(npz: Path) -> None:
    data = load_dataset(f"npz:{npz}")
    assert data.images.shape == (6, 3, 8, 8)
    assert data.images.dtype == torch.float32
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(data) == 6
    assert data.source == f"npz:{npz}"
    pixels = (data.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels, some_images(6))


def test_npz_splits_are_apart(npz: Path) -> None:
    train = load_dataset(f"npz:{npz}", split="train")
    assert len(train) == 10
    assert not torch.equal(train.images[:6], load_dataset(f"npz:{npz}", split="test").images)


@pytest.mark.parametrize("split", ["test", "train"])
def test_npz_without_splits_serves_both(tmp_path: Path, split: str) -> None:
    np.savez(tmp_path / "plain.npz", images=some_images(2), labels=np.array([0, 1]))
    assert len(load_dataset(f"npz:{tmp_path / 'plain.npz'}", split=split)) == 2


def test_pickled_npz_is_refused_and_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "evil.npz"
    np.savez(file, images=np.array([Boom()], dtype=object), labels=np.array([0]))
    with pytest.raises(DataError, match="cannot be read as npz without pickles") as caught:
        load_dataset(f"npz:{file}")
    assert str(file) in str(caught.value)
    assert not Boom.opened


GOOD = {"images": some_images(4), "labels": np.arange(4)}
MALFORMED: dict[str, tuple[dict[str, Array], str]] = {
    "wrong keys": ({"x": some_images(4), "y": np.arange(4)}, r"no arrays named .*images/labels \(found: x, y\)"),
    "labels missing": ({"images": some_images(4)}, r"no arrays named"),
    "float images": ({**GOOD, "images": some_images(4) / 255.0}, r"must be uint8 .* got float64"),
    "channels first": ({**GOOD, "images": some_images(4).transpose(0, 3, 1, 2)}, r"must be uint8 of shape N x H x W"),
    "flat images": ({**GOOD, "images": some_images(4).reshape(4, -1)}, r"must be uint8 of shape .* \(4, 192\)"),
    "float labels": ({**GOOD, "labels": np.arange(4.0)}, r"labels must be 4 integers.* got float64"),
    "too few labels": ({**GOOD, "labels": np.arange(3)}, r"labels must be 4 integers"),
    "one-hot labels": ({**GOOD, "labels": np.eye(4, dtype=np.int64)}, r"labels must be 4 integers.* \(4, 4\)"),
    "no images": ({"images": some_images(0), "labels": np.arange(0)}, r"holds no images"),
}


@pytest.mark.parametrize(("arrays", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_npz_is_refused(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    file = tmp_path / "bad.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"npz:{file}")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_npz_is_refused(npz: Path, share: float) -> None:
    content = npz.read_bytes()
    npz.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"data\.npz"):
        load_dataset(f"npz:{npz}")


def test_npz_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez_compressed(file, images=np.tile(some_images(1), (50, 1, 1, 1)), labels=np.arange(50))
    content = bytearray(file.read_bytes())
    for position in range(150, 170):
        content[position] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz"):
        load_dataset(f"npz:{file}")


@pytest.mark.parametrize("content", [b"no archive at all", b"\x80\x04K\x01."], ids=["text", "pickle"])
def test_npz_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as npz without pickles"):
        load_dataset(f"npz:{tmp_path / 'data.npz'}")


def test_single_array_renamed_to_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", some_images(2))
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    with pytest.raises(DataError, match=r"data\.npz"):
        load_dataset(f"npz:{tmp_path / 'data.npz'}")


# torchvision


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_missing_torchvision_data_is_reported_and_not_downloaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"tried to download {args} {kwargs}")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=f"data '{kind}': not usable in .*--gradmask-download") as caught:
        load_dataset(f"{kind}:{tmp_path / 'nowhere'}")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_torchvision_data_without_a_network(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    said = f"could not download it into .*no route to host.*without a network, give its directory as {kind}:ROOT"
    with pytest.raises(DataError, match=said):
        load_dataset(f"{kind}:{tmp_path}", download=True)


def test_torchvision_data_default_to_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="pytest-gradmask") as caught:
        load_dataset("cifar10")
    assert str(tmp_path) in str(caught.value)


def test_torchvision_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert (root, download) == (str(tmp_path), False)
            self.data, self.targets = some_images(3 if train else 2), [1, 0, 1][: 3 if train else 2]
            self.classes = ["here", "there"]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    assert len(load_dataset(f"cifar10:{tmp_path}", split="train")) == 3
    assert load_dataset(f"cifar10:{tmp_path}").labels.tolist() == [1, 0]
    assert load_dataset(f"cifar10:{tmp_path}").class_names == ("here", "there")


def test_embedded_images_have_the_names_of_their_classes(npz: Path) -> None:
    data = load_dataset("embedded")
    assert [data.class_names[label] for label in data.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    assert (data.classes, data.subset(5, 0).class_names) == (10, data.class_names)
    assert load_dataset(f"npz:{npz}").class_names == ()


# specifications


@pytest.mark.parametrize("spec", ["", "mnist", "cifar10x:dir", "/some/path", "NPZ:file"])
def test_unknown_kind_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"unknown kind .* use embedded, cifar10\[:ROOT\]"):
        check_data(spec)


@pytest.mark.parametrize("spec", ["npz", "npz:", "imagefolder", "imagefolder:"])
def test_kind_that_needs_a_path_says_so(spec: str) -> None:
    with pytest.raises(InputError, match=r"give a path, as in (npz|imagefolder):PATH"):
        check_data(spec)


@pytest.mark.parametrize("kind", ["npz", "imagefolder"])
def test_path_that_does_not_exist_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"no such (file|directory)") as caught:
        load_dataset(f"{kind}:{tmp_path / 'missing'}")
    assert str(tmp_path / "missing") in str(caught.value)


def test_directory_is_no_npz_and_file_no_imagefolder(npz: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        check_data(f"npz:{npz.parent}")
    with pytest.raises(InputError, match="no such directory"):
        check_data(f"imagefolder:{npz}")


def test_embedded_takes_no_path() -> None:
    with pytest.raises(InputError, match="takes no path"):
        check_data("embedded:x")


def test_path_may_contain_a_colon(tmp_path: Path) -> None:
    np.savez(tmp_path / "a:b.npz", images=some_images(2), labels=np.arange(2))
    assert len(load_dataset(f"npz:{tmp_path / 'a:b.npz'}")) == 2


def test_unknown_split_is_refused(npz: Path) -> None:
    with pytest.raises(InputError, match="split 'valid': use one of test, train"):
        load_dataset(f"npz:{npz}", split="valid")


# samples


def test_subset_leaves_the_global_random_state_alone(npz: Path) -> None:
    before, torch_before = repr(np.random.get_state()), torch.get_rng_state()
    load_dataset(f"npz:{npz}", samples=3, seed=5)
    assert repr(np.random.get_state()) == before
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize("samples", [7, 0, -1])
def test_impossible_number_of_samples_is_refused(npz: Path, samples: int) -> None:
    with pytest.raises(InputError, match=f"samples {samples}: .* has 6 images"):
        load_dataset(f"npz:{npz}", samples=samples)


# the embedded images


def test_embedded_images_come_with_the_package() -> None:
    data = load_dataset("embedded")
    assert data.images.shape == (20, 3, 32, 32)
    assert data.labels.tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6]
    assert torch.equal(load_dataset("embedded", split="train").images, data.images)


def test_embedded_images_are_those_of_foolbox() -> None:
    spec = find_spec("foolbox")  # not imported: only its files are wanted
    if spec is None or spec.origin is None:
        pytest.skip("foolbox is not installed")
    if version("foolbox") != "3.3.4":
        pytest.skip(f"foolbox is {version('foolbox')}, and the images were taken from 3.3.4")
    files = sorted((Path(spec.origin).parent / "data").glob("cifar10_*.png"))
    with np.load(fixtures_directory() / "cifar10-embedded.npz") as ours:
        np.testing.assert_array_equal(ours["images"], np.stack([np.asarray(Image.open(file)) for file in files]))
        assert ours["labels"].tolist() == [int(file.stem.split("_")[2]) for file in files]


def test_embedded_images_are_from_the_test_set() -> None:
    file = os.environ.get("GRADMASK_TEST_DATA")
    if not file:
        pytest.skip("GRADMASK_TEST_DATA does not name an npz file of CIFAR-10")
    ours, theirs = load_dataset("embedded"), load_dataset(f"npz:{file}")
    assert torch.equal(ours.images, theirs.images[:20])
    assert torch.equal(ours.labels, theirs.labels[:20])
