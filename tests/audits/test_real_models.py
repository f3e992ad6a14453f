"""Real models on real images: each is loaded by one line and has its known accuracy."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from audits import real_data
from pytest_gradmask import load_dataset, load_model
from tests.toys import predictions

#: A forward of an image of 224 x 224 takes a twentieth of a second.
IMAGES = 30


def accuracy(found: Tensor, labels: Tensor) -> float:
    return (found == labels).float().mean().item()


def test_a_classifier_of_imagenet_with_weights_under_other_names(tmp_path: Path) -> None:
    """Its accuracy is 88.3 % on all 1,000 images. Tensors are matched by order."""
    model = load_model(real_data.efficientnet())
    data = load_dataset(real_data.imagenet(tmp_path), samples=IMAGES)
    assert data.images.shape == (IMAGES, 3, 224, 224)
    assert len(set(data.labels.tolist())) == IMAGES
    found = predictions(model, data.images)
    assert accuracy(found, data.labels) >= 0.7
    assert accuracy(found, data.labels.roll(1)) <= 0.1


def test_a_classifier_of_cifar10() -> None:
    data = load_dataset(real_data.cifar10(), samples=300)
    assert data.labels.bincount().tolist() == [30] * 10
    assert accuracy(predictions(load_model("resnet-standard"), data.images), data.labels) >= 0.82  # 88.3 % of 1,017


def test_cifar100_has_as_many_of_each_class_as_there_are() -> None:
    data = load_dataset(real_data.cifar100(), samples=100)
    assert data.images.shape == (100, 3, 32, 32)
    assert data.labels.tolist() != sorted(data.labels.tolist())
    assert data.labels.unique().tolist() == list(range(100))
