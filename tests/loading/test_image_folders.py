"""Folders of image files: class folders, the layouts of ImageNet, sizes, and when files are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_gradmask.errors import DataError
from pytest_gradmask.loading.class_folders import note_on
from pytest_gradmask.loading.datasets import load_dataset, open_dataset

#: The first class of ImageNet, the second and the last.
TENCH, GOLDFISH, LAST = "n01440764", "n01443537", "n15075141"


def drawn(seed: int, height: int = 12, width: int = 16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three class folders of ImageNet with two images each."""
    for number, name in enumerate((TENCH, GOLDFISH, LAST)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for image in range(2):
            Image.fromarray(drawn(2 * number + image)).save(tmp_path / "val" / name / f"{image}.png")
    return tmp_path / "val"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(drawn(10 * label + number, 8, 8)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Three images in one folder, with a file of labels."""
    (tmp_path / "flat").mkdir()
    for number in range(3):
        Image.fromarray(drawn(number)).save(tmp_path / "flat" / f"val {number}.png")
    (tmp_path / "flat" / "labels.txt").write_text(f"val 2.png {LAST}\nval 0.png 0\nval 1.png\t{GOLDFISH}\n")
    return tmp_path / "flat"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files, added as they are decoded."""
    from torchvision.datasets import folder

    found: list[str] = []
    load: Callable[[str], Image.Image] = folder.pil_loader

    def watched(path: str) -> Image.Image:
        found.append(Path(path).name)
        return load(path)

    monkeypatch.setattr(folder, "pil_loader", watched)
    return found


def test_labels_are_imagenet_labels_if_classes_are_missing(classes: Path) -> None:
    data = load_dataset(f"imagenet:{classes}?size=8&resize=12")
    assert data.labels.tolist() == [0, 0, 1, 1, 999, 999]
    assert data.classes == 1000
    assert [data.class_names[label] for label in (0, 1, 999)] == ["tench", "goldfish", "toilet tissue"]
    assert data.labels.dtype == torch.int64


def test_labels_of_a_flat_folder(flat: Path, tmp_path: Path) -> None:
    data = load_dataset(f"imagenet:{flat}?size=12&resize=12")
    assert data.labels.tolist() == [999, 0, 1]
    centre = torch.from_numpy(drawn(2)[:, 2:14]).permute(2, 0, 1) / 255
    torch.testing.assert_close(data.images[0], centre)
    (flat / "labels.txt").rename(tmp_path / "elsewhere.txt")
    again = load_dataset(f"imagenet:{flat}?size=12&resize=12&labels={tmp_path / 'elsewhere.txt'}")
    assert torch.equal(again.images, data.images)


def test_default_crop_is_224_of_256_pixels(classes: Path) -> None:
    Image.fromarray(drawn(7, 256, 300)).save(classes / TENCH / "0.png")
    data = load_dataset(f"imagenet:{classes}")
    assert data.images.shape == (6, 3, 224, 224)
    assert data.images.dtype == torch.float32
    centre = torch.from_numpy(drawn(7, 256, 300)[16:240, 38:262]).permute(2, 0, 1) / 255
    torch.testing.assert_close(data.images[0], centre)


def test_the_shorter_side_is_resized(classes: Path) -> None:
    for name, shape in (("0.png", (24, 40)), ("1.png", (40, 24))):
        Image.fromarray(np.full((*shape, 3), 51, dtype=np.uint8)).save(classes / TENCH / name)
    images = load_dataset(f"imagenet:{classes}?size=8&resize=12").images
    assert images.shape == (6, 3, 8, 8)
    torch.testing.assert_close(images[:2], torch.full((2, 3, 8, 8), 0.2))


def test_folders_of_other_classes_can_be_resized_too(classes: Path) -> None:
    Image.fromarray(drawn(7, 20, 30)).save(classes / TENCH / "0.png")
    with pytest.raises(DataError, match=r"give one size, as in imagefolder:.*\?size=224&resize=256"):
        load_dataset(f"imagefolder:{classes}")
    data = load_dataset(f"imagefolder:{classes}?size=8")
    assert data.images.shape == (6, 3, 8, 8)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.classes == 3


def test_only_chosen_images_are_decoded(classes: Path, decoded: list[str]) -> None:
    for name in (TENCH, GOLDFISH, LAST):
        for number in range(2, 10):
            (classes / name / f"{number}.png").write_bytes(b"no image")
    found = open_dataset(f"imagenet:{classes}?size=8&resize=12")
    assert len(found) == 30
    assert decoded == []
    chosen = next(
        data for data in (attempt(found.load, seed) for seed in range(1000)) if data is not None
    )  # none of the damaged ones
    assert sorted(chosen.labels.tolist()) == [0, 1, 999]
    decoded.clear()
    with pytest.raises(DataError, match="cannot be decoded"):
        found.load(30, 0)


def attempt(load: Callable[..., Any], seed: int) -> Any:
    try:
        return load(3, seed)
    except DataError:
        return None


@pytest.mark.parametrize("kind", ["imagenet", "imagefolder"])
@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_a_truncated_image_is_named(kind: str, form: str, classes: Path) -> None:
    (classes / GOLDFISH / "1.png").unlink()
    file = classes / GOLDFISH / f"1.{form}"
    Image.fromarray(drawn(0, 64, 64)).save(file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        load_dataset(f"{kind}:{classes}?size=8")
    assert str(file) in str(caught.value)


def test_a_class_folder_without_images_is_named(classes: Path) -> None:
    (classes / "n01484850").mkdir()
    with pytest.raises(DataError, match="n01484850"):
        load_dataset(f"imagenet:{classes}")


@pytest.mark.parametrize("content", ["nothing", "images alone"])
def test_folder_without_classes_error_names_the_layouts(content: str, tmp_path: Path) -> None:
    if content == "images alone":
        Image.fromarray(drawn(0)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"folder for each class, named by its WordNet id .*labels\.txt"):
        load_dataset(f"imagenet:{tmp_path}")


def test_a_folder_of_other_classes_is_refused(classes: Path) -> None:
    with pytest.raises(DataError, match=r"'val' in .* is not a class of ImageNet; an ImageNet folder has"):
        load_dataset(f"imagenet:{classes.parent}")


@pytest.mark.parametrize(
    ("lines", "said"),
    {
        "": "name no images",
        "val 0.png 0\nval 1.png": "line 2 is 'val 1.png', not 'FILE LABEL' with a WordNet id or 0 to 999",
        "val 0.png 0\n\nval 1.png 1": "line 2 is ''",
        "val 0.png": "line 1 is",
        "val 0.png 1000": "line 1 is",
        "val 0.png -1": "line 1 is",
        "val 0.png tench": "line 1 is",
        "val 9.png 0": "line 1 names 'val 9.png', which is not in",
    }.items(),
)
def test_a_malformed_list_of_labels_is_refused(lines: str, said: str, flat: Path) -> None:
    (flat / "labels.txt").write_text(lines)
    with pytest.raises(DataError, match=said) as caught:
        load_dataset(f"imagenet:{flat}")
    assert str(flat / "labels.txt") in str(caught.value)


def test_binary_list_of_labels_is_refused(flat: Path) -> None:
    (flat / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"labels\.txt: cannot be read"):
        load_dataset(f"imagenet:{flat}")


def test_imagefolder_classes_are_in_sorted_order(folder: Path) -> None:
    data = load_dataset(f"imagefolder:{folder}")
    assert data.images.shape == (4, 3, 8, 8)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.class_names == ("ant", "bee")
    expected = torch.from_numpy(drawn(11, 8, 8)).permute(2, 0, 1) / 255
    torch.testing.assert_close(data.images[3], expected)


def test_imagefolder_of_gray_images_becomes_rgb(folder: Path) -> None:
    Image.fromarray(drawn(0, 8, 8)[:, :, 0]).save(folder / "ant" / "0.png")
    gray = load_dataset(f"imagefolder:{folder}").images[0]
    assert torch.equal(gray[0], gray[1])


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_corrupted_image_is_named(folder: Path, damage: str) -> None:
    file = folder / "bee" / "1.png"
    content = {"text": b"this is no image", "truncated": file.read_bytes()[:120], "empty": b""}[damage]
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        load_dataset(f"imagefolder:{folder}")
    assert str(file) in str(caught.value)


def test_image_of_another_size_is_named(folder: Path) -> None:
    Image.fromarray(drawn(0, 9, 9)).save(folder / "bee" / "0.png")
    with pytest.raises(DataError, match="give one size, as in imagefolder") as caught:
        load_dataset(f"imagefolder:{folder}")
    assert str(folder / "bee" / "0.png") in str(caught.value)


def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image folder"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_class_without_images_is_refused(folder: Path) -> None:
    (folder / "cow").mkdir()
    with pytest.raises(DataError, match="cow"):
        load_dataset(f"imagefolder:{folder}")


def class_folders(root: Path, names: Sequence[str]) -> str:
    """One image for each of these classes, all pixels as bright as the class's place in ``names``."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), place, dtype=np.uint8)).save(root / name / "image.png")
    return f"imagefolder:{root}"


def places(spec: str) -> list[int]:
    """For each label, the place of its folder in `class_folders`."""
    data = load_dataset(spec)
    assert data.labels.tolist() == list(range(len(data)))
    assert data.classes == len(data)
    return (data.images[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(12)],
        [str(number) for number in range(1, 13)],
        ["07", "8", "9", "10", "011", "100"],
    ],
    ids=["from 0", "from 1", "with zeros in front"],
)
def test_numeric_folders_are_in_the_order_of_numbers(tmp_path: Path, names: list[str]) -> None:
    spec = class_folders(tmp_path, names)
    assert places(spec) == list(range(len(names)))
    note = load_dataset(spec).note
    assert note.startswith(f"{len(names)} class folders in the order of numbers: label ")
    assert note_on(spec) == note == load_dataset(spec).subset(2, 0).note


@pytest.mark.parametrize(
    "names", [["0", "1", "10", "11", "2", "cat"], ["-1", "-2", "10", "9"], ["1.5", "10", "9"], ["10", "9", "٣"]]
)
def test_mixed_names_stay_in_text_order(tmp_path: Path, names: list[str]) -> None:
    assert names == sorted(names)
    spec = class_folders(tmp_path, names)
    assert places(spec) == list(range(len(names)))
    assert load_dataset(spec).note == note_on(spec) == ""


def test_numbers_whose_two_orders_agree_need_no_note(tmp_path: Path) -> None:
    spec = class_folders(tmp_path, ["0", "1", "2"])
    assert places(spec) == [0, 1, 2]
    assert load_dataset(spec).note == note_on(spec) == ""


@pytest.mark.parametrize("spec", ["embedded", "imagefolder:/there/is/nothing", "nonsense:x"])
def test_other_data_has_no_note(spec: str) -> None:
    assert note_on(spec) == ""
