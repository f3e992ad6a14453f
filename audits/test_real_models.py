"""Undefended models on real images of CIFAR-10, CIFAR-100 and ImageNet: they are weak, but they do not mask.

Each test loads its model and images by the specifications that users write. `real_data` says where the files are.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from audits import real_data
from pytest_gradmask import Defense, Verdict, load_dataset, load_model
from pytest_gradmask.plugin.fixtures import Gradmask
from pytest_gradmask.report.failure import explain

pytestmark = [pytest.mark.gradmask, pytest.mark.slow]

_RIDGE = 0.1  # as a share of the mean square of a feature vector
_SIDE = 96  # pixels: CIFAR images are enlarged to this size for a network trained on ImageNet


def _check_undefended(gradmask: Gradmask, model: nn.Module, name: str, data: str) -> None:
    """The verdict is NOT_MASKED, and almost every image is broken."""
    images = load_dataset(data, samples=gradmask.settings.samples or gradmask.settings.budget.samples)
    audit = gradmask.audit(Defense(model, name=name), images.images, images.labels)
    assert audit.verdict is Verdict.NOT_MASKED, explain(audit, "NOT_MASKED: it has no defense")
    assert audit.robust_accuracy.value <= 0.05
    assert audit.clean_accuracy.value >= 0.3


@pytest.mark.parametrize("name", ["resnet-standard", "vit-standard"])
def test_a_classifier_of_cifar10(gradmask: Gradmask, name: str) -> None:
    _check_undefended(gradmask, load_model(name), name, real_data.cifar10())


@pytest.mark.gradmask(eps=4 / 255)
def test_a_classifier_of_imagenet(gradmask: Gradmask, tmp_path: Path) -> None:
    model = load_model(real_data.efficientnet())
    _check_undefended(gradmask, model, "efficientnet-lite0", real_data.imagenet(tmp_path))


def test_a_linear_probe_on_cifar100(gradmask: Gradmask) -> None:
    """A linear layer on the features of a network for ImageNet: there is no trained classifier of CIFAR-100 here."""
    data = real_data.cifar100()
    model = _probe(load_model(real_data.efficientnet()), data)
    _check_undefended(gradmask, model, "efficientnet-lite0, probe", data)


def _probe(model: nn.Module, data: str) -> nn.Module:
    """A network whose last layer is fitted to the training images in one step, by ridge regression."""
    train = load_dataset(data, split="train")
    network = model.get_submodule("1")
    network.classifier = nn.Identity()
    probe = nn.Sequential(nn.Upsample(size=_SIDE, mode="bilinear"), model).eval()
    with torch.no_grad():
        features = torch.cat([probe(part) for part in train.images.split(50)])
        mean = features.mean(0)
        centred = features - mean
        products = centred @ centred.T
        targets = nn.functional.one_hot(train.labels, 100).float() - 0.01
        ridge = _RIDGE * products.diagonal().mean() * torch.eye(len(products))
        head = nn.Linear(features.shape[1], 100)
        head.weight.copy_((centred.T @ torch.linalg.solve(products + ridge, targets)).T)
        head.bias.copy_(-head.weight @ mean)
    network.classifier = head
    return probe
