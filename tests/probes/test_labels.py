"""Labels that do not go with the answers: renumbered classes, guesses, constant answers; and honest models without."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import load_model
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.probes.labels import check_labels
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding, Verdict
from tests.probes.probe_toys import ON_GRID
from tests.toys import Quantize, audited, draw, linear, predictions

FIXTURES = [
    f"{name}-{training}{end}"
    for name in ("resnet", "vgg", "vit")
    for training in ("standard", "adversarial")
    for end in ("", "-composite")
]


def balanced(count: int, classes: int) -> Tensor:
    """As many labels of each class as possible, sorted by class."""
    return (torch.arange(count) % classes).sort().values


def answers(labels: Tensor, classes: int, accuracy: float, seed: int) -> Tensor:
    """What a model of this accuracy answers, whose mistakes are spread evenly."""
    random = np.random.default_rng(seed)
    mistakes = random.integers(1, classes, len(labels))
    right = random.random(len(labels)) < accuracy
    return torch.where(torch.from_numpy(right), labels, (labels + torch.from_numpy(mistakes)) % classes)


def ids(found: list[Finding]) -> list[str]:
    return [finding.id for finding in found]


@functools.cache
def trained_answers(name: str) -> Tensor:
    return predictions(load_model(name), load_dataset("embedded").images)


@pytest.mark.parametrize("name", FIXTURES)
def test_trained_models_have_no_finding(name: str) -> None:
    labels = load_dataset("embedded").labels
    for count in (5, 10, 20):
        assert check_labels(trained_answers(name)[:count], labels[:count], 10, 0.99) == []


@pytest.mark.parametrize("count", [20, 60, 200])
@pytest.mark.parametrize(
    ("classes", "accuracy"), [(2, 0.75), (2, 0.95), (10, 0.4), (10, 0.9), (1000, 0.3), (1000, 0.75)]
)
def test_honest_models_have_no_finding(count: int, classes: int, accuracy: float) -> None:
    labels = balanced(count, classes)
    found = [check_labels(answers(labels, classes, accuracy, seed), labels, classes, 0.99) for seed in range(50)]
    assert sum(map(len, found)) <= (accuracy < 0.5)  # one in 2,000 at 40 %


@pytest.mark.parametrize("accuracy", [0.5, 0.95])
@pytest.mark.parametrize("labels", [torch.zeros(60, dtype=torch.long), (torch.arange(60) > 57).long()])
def test_images_of_one_class_are_no_finding(labels: Tensor, accuracy: float) -> None:
    for seed in range(20):
        assert check_labels(answers(labels, 10, accuracy, seed), labels, 10, 0.99) == []
    assert check_labels(torch.zeros_like(labels), labels, 10, 0.99) == []


@pytest.mark.parametrize(("count", "classes"), [(60, 10), (200, 2), (60, 1000)])
def test_a_guess_is_found(count: int, classes: int) -> None:
    labels = balanced(count, classes)
    guesses = torch.from_numpy(np.random.default_rng(0).integers(0, classes, count))
    [finding] = check_labels(guesses, labels, classes, 0.99)
    assert finding.id == "chance-accuracy"
    assert finding.undermines_attacks
    assert "check weights, normalisation, label order" in finding.message


def test_one_class_for_all_images_is_found() -> None:
    labels = balanced(20, 10)
    [finding] = check_labels(torch.full((20,), 4), labels, 10, 0.99)
    assert finding.id == "constant-predictions"
    assert finding.undermines_attacks
    assert "all 20 clean images are answered as class 4, and 18 of them have other labels" in finding.message


@pytest.mark.parametrize(("count", "classes"), [(20, 10), (60, 10), (200, 100)])
def test_renumbered_classes_are_found(count: int, classes: int) -> None:
    labels = balanced(count, classes)
    order = torch.from_numpy(np.random.default_rng(3).permutation(classes))
    moved = int((order != torch.arange(classes)).nonzero()[0])
    [finding] = check_labels(order[answers(labels, classes, 0.95, 0)], labels, classes, 0.99)
    assert finding.id == "permuted-labels"
    assert finding.undermines_attacks
    assert f"label {moved} is answered as {order[moved]}" in finding.message


def test_two_exchanged_classes_are_found_among_honest_ones() -> None:
    labels = balanced(200, 10)
    order = torch.tensor([1, 0, *range(2, 10)])
    [finding] = check_labels(order[answers(labels, 10, 0.9, 0)], labels, 10, 0.99)
    assert finding.id == "permuted-labels"
    assert "label 0 is answered as 1, label 1 is answered as 0;" in finding.message


@pytest.mark.parametrize(
    ("classes", "order", "words"),
    [
        (12, sorted(range(12), key=str), "the labels are numbers in text order: 0, 1, 10, 11, 2"),
        (1000, sorted(range(1000), key=str), "the labels are numbers in text order: 0, 1, 10, 11, 2"),
        (100, [int(name) - 1 for name in sorted(map(str, range(1, 101)))], "in text order: 1, 10, 11, 2"),
        (100, np.argsort(sorted(range(100), key=str)).tolist(), "the classes of the defense are numbers in text order"),
        (10, [*range(1, 10), 0], "the labels are 1 too low"),
        (1000, [999, *range(999)], "the labels are 1 too high"),
        (10, list(range(10))[::-1], "the order is reversed"),
        (2, [1, 0], "the order is reversed"),
    ],
)
def test_usual_mistakes_are_named(classes: int, order: list[int], words: str) -> None:
    labels = balanced(60, classes) if classes < 1000 else torch.arange(0, 1000, 17)
    [finding] = check_labels(torch.tensor(order)[answers(labels, classes, 0.9, 1)], labels, classes, 0.99)
    assert finding.id == "permuted-labels"
    assert words in finding.message


def test_it_takes_less_than_a_second() -> None:
    labels = balanced(2000, 1000)
    started = time.monotonic()
    check_labels(torch.from_numpy(np.random.default_rng(0).permutation(1000))[labels], labels, 1000, 0.99)
    assert time.monotonic() - started < 5  # a second on an idle machine


def test_an_audit_says_so_and_refuses() -> None:
    images = draw(60, 3, 8, 8)
    model = nn.Sequential(Quantize(), linear()).eval()
    right = predictions(model, images)
    labels = torch.tensor([1, 2, 3, 0])[right]
    labels[:5] = right[:5]
    audit = audited(model, images, labels=labels, threat=ThreatModel(0.001))
    assert "permuted-labels" in ids(list(audit.findings))
    assert audit.verdict is not Verdict.NOT_MASKED
    honest = audited(linear(), ON_GRID, threat=ThreatModel(0.002))
    assert honest.verdict is Verdict.NOT_MASKED
    assert honest.findings == ()
