"""Torch data sets of the user."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pytest_gradmask.errors import DataError, InputError
from pytest_gradmask.loading.datasets import load_dataset, open_dataset

PROJECT = """
import numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

class Drawn(Dataset):
    classes = ["ant", "bee", "cow"]

    def __init__(self, count=12):
        self.targets = [index % 3 for index in range(count)]
        self.read = []

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.read.append(index)
        return self.image(index), self.label(index)

    def image(self, index):
        return torch.full((3, 4, 4), index / 100)

    def label(self, index):
        return self.targets[index]

DATA = Drawn()

def load():
    return Drawn(6)

class Pictures(Drawn):
    def image(self, index):
        return Image.fromarray(np.full((4, 4, 3), 51, dtype=np.uint8))

class Gray(Drawn):
    def image(self, index):
        return Image.fromarray(np.full((4, 4), 51, dtype=np.uint8))

class Unlabelled(Drawn):
    classes = None

    def __init__(self):
        super().__init__()
        self.labels = self.targets
        del self.targets

    def __len__(self):
        return 12

    def label(self, index):
        return torch.tensor(index % 3)

class Empty(Drawn):
    def __init__(self): super().__init__(0)

class Stream(IterableDataset):
    def __iter__(self): yield from ()

class Broken(Drawn):
    def image(self, index): raise OSError("file is gone")

class Alone(Drawn):
    def __getitem__(self, index): return self.image(index)

class Bytes(Drawn):
    def image(self, index): return torch.zeros(3, 4, 4, dtype=torch.uint8)

class Normalised(Drawn):
    def image(self, index): return torch.full((3, 4, 4), -1.5)

class NotANumber(Drawn):
    def image(self, index): return torch.full((3, 4, 4), torch.nan)

class Array(Drawn):
    def image(self, index): return np.zeros((3, 4, 4))

class Flat(Drawn):
    def image(self, index): return torch.zeros(48)

class Growing(Drawn):
    def image(self, index): return torch.zeros(3, 4, 4 + index)

class Named(Drawn):
    def label(self, index): return "ant"

class Soft(Drawn):
    def label(self, index): return 0.5

class OneHot(Drawn):
    def label(self, index): return torch.eye(3, dtype=torch.int64)[0]

class Negative(Drawn):
    def label(self, index): return -1
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_data", None)  # so that the end of the test removes it again
    monkeypatch.delitem(sys.modules, "my_data")
    (tmp_path / "my_data.py").write_text(PROJECT)


def test_items_become_a_batch() -> None:
    data = load_dataset("dataset:my_data:DATA")
    assert data.images.shape == (12, 3, 4, 4)
    assert data.images.dtype == torch.float32
    torch.testing.assert_close(data.images[:, 0, 0, 0], torch.arange(12) / 100)
    assert data.labels.tolist() == [0, 1, 2] * 4
    assert data.labels.dtype == torch.int64
    assert (data.classes, data.class_names) == (3, ("ant", "bee", "cow"))
    assert len(load_dataset("dataset:my_data:load")) == 6


@pytest.mark.parametrize(("kind", "channels"), [("Pictures", 3), ("Gray", 1)])
def test_pictures_become_tensors(kind: str, channels: int) -> None:
    images = load_dataset(f"dataset:my_data:{kind}", samples=2).images
    torch.testing.assert_close(images, torch.full((2, channels, 4, 4), 0.2))


def test_only_chosen_items_are_read() -> None:
    found = open_dataset("dataset:my_data:DATA")
    drawn = sys.modules["my_data"].DATA
    assert drawn.read == []
    data = found.load(6, 1)
    assert data.labels.bincount().tolist() == [2, 2, 2]
    assert drawn.read == (100 * data.images[:, 0, 0, 0]).round().int().tolist()


def test_unknown_labels_are_read_with_their_images() -> None:
    data = load_dataset("dataset:my_data:Unlabelled", samples=6)
    assert data.labels.tolist() == [round(100 * value) % 3 for value in data.images[:, 0, 0, 0].tolist()]
    assert data.classes is None


@pytest.mark.parametrize(
    ("kind", "said"),
    {
        "Empty": "holds no images",
        "Stream": "has no length; give a map-style data set",
        "Broken": r"item 0 cannot be read as \(image, label\): OSError: file is gone",
        "Alone": r"item 0 cannot be read as \(image, label\): ValueError",
        "Bytes": r"item 0: its image is torch.uint8 \(3, 4, 4\); must be floats",
        "Array": "item 0: its image is ndarray",
        "Flat": r"item 0: its image is torch.float32 \(48,\)",
        "Normalised": r"item 0: its image has values from -1.5 to -1.5; must be in \[0, 1\]",
        "NotANumber": "item 0: its image has values from nan",
        "Growing": r"image 1 has the shape \(3, 4, 5\), image 0 \(3, 4, 4\); resize them to one",
        "Named": "item 0: its label is 'ant'; must be a whole number from 0",
        "Soft": "its label is 0.5",
        "OneHot": r"its label is tensor\(\[1, 0, 0\]\)",
        "Negative": "its label is -1",
    }.items(),
)
def test_what_cannot_be_used_is_an_error(kind: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_dataset(f"dataset:my_data:{kind}")
    assert f"'dataset:my_data:{kind}'" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("my_data:Drawm", "my_data has no 'Drawm'; it has Drawn"),
        ("my_data:PROJECT", "has no 'PROJECT'"),
        ("my_data:np", "is a module; must be a Dataset, or return one when called"),
        ("nowhere:data", "No module named 'nowhere'"),
    ],
)
def test_what_is_no_data_set_is_refused(target: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_dataset(f"dataset:{target}")
