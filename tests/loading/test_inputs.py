"""Images and labels in the forms that people have them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.loading.inputs import Batch, as_batch

BYTES = torch.randint(0, 256, (6, 3, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = BYTES.float() / 255
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
LAST = BYTES.permute(0, 2, 3, 1).numpy()
PICTURES = [Image.fromarray(image) for image in LAST]


HALVES = (slice(4), slice(4, None))


class Items:
    """A map-style data set."""

    def __init__(self, make: Callable[[int], Any], count: int = 6) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def converted(images: Any, labels: Any = None, at_most: int = 6, bounds: tuple[float, float] = (0.0, 1.0)) -> Batch:
    return as_batch(images, labels, bounds=bounds, at_most=at_most, seed=0)


def items(image: Any, label: Any) -> list[Any]:
    return [image, label]


FORMS: dict[str, tuple[Any, Any]] = {
    "tensors": (IMAGES, LABELS),
    "uint8": (BYTES, LABELS),
    "arrays": (IMAGES.numpy(), LABELS.numpy()),
    "double arrays": (IMAGES.double().numpy(), LABELS.numpy().astype(np.int32)),
    "channels last, bytes": (LAST, LABELS.tolist()),
    "channels last, floats": (LAST.astype(np.float32) / 255, LABELS),
    "pictures": (PICTURES, LABELS.tolist()),
    "list of tensors": (list(IMAGES), list(LABELS)),
    "labels of shape N x 1": (IMAGES, LABELS[:, None].numpy()),
    "pair": ((IMAGES, LABELS), None),
    "dictionary": ({"pixel_values": IMAGES, "labels": LABELS}, None),
    "loader": (DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4), None),
    "loader of dictionaries": ([{"image": IMAGES[part], "label": LABELS[part]} for part in HALVES], None),
    "iterable data set": (list(zip(IMAGES, LABELS, strict=True)), None),
    "data set": (TensorDataset(IMAGES, LABELS), None),
    "data set of pictures": (Items(lambda index: (PICTURES[index], int(LABELS[index]))), None),
    "MedMNIST": (Items(lambda index: (IMAGES[index], LABELS[index : index + 1].numpy())), None),
    "Hugging Face": (Items(lambda index: {"img": PICTURES[index], "label": int(LABELS[index])}), None),
    "more than a pair": (Items(lambda index: (IMAGES[index], LABELS[index], "name")), None),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_batch(name: str) -> None:
    images, labels = FORMS[name]
    if name in ("loader of dictionaries", "iterable data set"):
        images = iter(images)
    batch = converted(images, labels)
    assert batch.images.dtype == torch.float32
    torch.testing.assert_close(batch.images, IMAGES)
    assert batch.labels.tolist() == LABELS.tolist()


def test_tensors_are_not_touched() -> None:
    batch = converted(IMAGES, LABELS)
    assert batch.images is IMAGES
    assert batch.labels is LABELS
    assert batch.findings() == []
    assert converted(batch) is batch


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("uint8", "divided by 255"), ("pictures", "divided by 255"), ("channels last, floats", "permuted"),
        ("labels of shape N x 1", "N x 1"),
    ],
)  # fmt: skip
def test_a_finding_says_what_was_converted(name: str, word: str) -> None:
    (finding,) = converted(*FORMS[name]).findings()
    assert finding.id == "converted-input"
    assert word in finding.message
    assert not finding.undermines_attacks


def test_bytes_are_scaled_to_the_bounds() -> None:
    assert converted(BYTES, LABELS, bounds=(0.0, 255.0)).images.max() > 200
    assert converted(BYTES, LABELS, bounds=(-1.0, 1.0)).images.dtype == torch.uint8  # the preflight refuses them


def test_grey_images_get_a_channel() -> None:
    assert converted(LAST[..., 0], LABELS).images.shape == (6, 1, 5, 6)
    assert converted([Image.fromarray(each[..., 0]) for each in LAST], LABELS).images.shape == (6, 1, 5, 6)


def test_as_many_images_as_the_budget_says() -> None:
    loader = converted(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2), at_most=3)
    torch.testing.assert_close(loader.images, IMAGES[:3])
    assert "the first 3 images" in loader.findings()[0].message
    some, again = (converted(TensorDataset(IMAGES, LABELS), at_most=3) for _ in range(2))
    assert some.images.shape == (3, 3, 5, 6)
    assert torch.equal(some.images, again.images)
    assert "3 of the 6 images" in some.findings()[0].message


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, None, "labels: missing"),
        (3, None, "images: int without labels"),
        ([], [], "list is empty"),
        (Items(lambda index: IMAGES[index]), None, "item . of Items: is Tensor"),
        (Items(lambda index: {"picture": 1, "label": 0}), None, "has the keys picture, label; needs one of image"),
        (Items(lambda index: (IMAGES[index], [0, 1])), None, r"labels: \[0, 1\] is not one whole number"),
        (Items(lambda index: (IMAGES[index], 0.5)), None, "is not one whole number"),
        (Items(lambda index: (IMAGES[index], 0), 0), None, "holds no images"),
        ([IMAGES[0], IMAGES[1][:, :2]], [0, 0], "number 1 is .*bring them to one size"),
        (["a file"], [0], "images: holds str"),
        (np.array(["a"]), [0], "an array of"),
        (IMAGES, ["cat"] * 6, "labels: cannot be made a tensor"),
    ],
)
def test_what_cannot_be_converted_says_why(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        converted(images, labels)


def test_an_item_that_raises_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match=r"item . of Items cannot be read: ZeroDivisionError"):
        converted(Items(lambda index: 1 // 0))


def test_pictures_of_16_bits_keep_their_values() -> None:
    """Pillow's own conversion makes them white; data sets and folders had the remedy already."""
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    batch = converted([Image.fromarray(ramp)] * 2, [0, 1])
    assert batch.images.shape == (2, 1, 8, 8)
    torch.testing.assert_close(batch.images[0, 0], torch.from_numpy(ramp / 65535).float(), atol=1 / 255, rtol=0)
