"""The measurement of a trained model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.loading.models.composites import Composite
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.training import measurement
from tests.toys import KillGradient, Spy, draw, linear


def linearly_robust(model: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    """Which images of a linear classifier have no adversarial example in the ball, exactly."""
    up, down = (1 - images).clamp(max=8 / 255).flatten(1), images.clamp(max=8 / 255).flatten(1)
    with torch.no_grad():
        logits, (weight, _) = model(images), (parameter.detach() for parameter in model.parameters())
        difference = weight[None] - weight[labels][:, None]  # N x K x D
        reach = (difference.clamp(min=0) * up[:, None] - difference.clamp(max=0) * down[:, None]).sum(2)
        margins = logits - logits.gather(1, labels[:, None]) + reach
    strongest: Tensor = margins.scatter(1, labels[:, None], -1.0).amax(1)
    return strongest < 0


def test_measurement_counts_and_attacks_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_BATCH", 16)
    images = draw(50, 3, 8, 8)
    model = linear()
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:10] = (labels[:10] + 1) % 4
    survivors = int(linearly_robust(model, images[:40], labels[:40]).sum())
    assert 0 < survivors < 30
    found = measurement.measure(model, Dataset(images, labels, "npz:/some/where/toys.npz"), "cpu", pgd_images=40)
    low, high = found.pop("clean_bounds_99")
    assert low < 0.8 < high
    assert found == {
        "data": {"kind": "npz", "name": "toys.npz", "images": 50},
        "images": 50,
        "clean_accuracy": 0.8,
        "pgd20_accuracy": survivors / 40,
        "pgd_images": 40,
        "pgd_seed": 0,
        "eps": 8 / 255,
        "norm": "Linf",
    }


def test_measurement_does_not_count_images_outside_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "pgd", lambda model, images, labels, **rest: 1 - images)
    images, model = draw(20, 3, 8, 8), linear()
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % 4  # misclassified clean images are no survivors, whatever the attack returns
    assert measurement.measure(model, Dataset(images, labels, "embedded"), "cpu")["pgd20_accuracy"] == 0.75


def test_no_more_images_are_attacked_than_there_are() -> None:
    images = draw(6, 3, 8, 8)
    data, model = Dataset(images, torch.zeros(6, dtype=torch.int64), "embedded"), linear()
    found = measurement.measure(model, data, "cpu", pgd_images=500)
    assert found["pgd_images"] == 6
    assert found == measurement.measure(model, data, "cpu")


# around a front end


def masked() -> tuple[Composite, Dataset, int]:
    """A front end without a gradient, a linear classifier, images, and the number of them that no attack can break."""
    backbone, images = linear(), draw(40, 3, 8, 8)
    composite = Composite(KillGradient(), backbone)  # whose output is 0.99 of the input
    shrunk = linear()
    with torch.no_grad():
        shrunk[1].weight.mul_(0.99)  # type: ignore[operator]
        labels = composite(images).argmax(1)
    survivors = int(linearly_robust(shrunk, images, labels).sum())
    return composite, Dataset(images, labels, "embedded"), survivors


def test_bypass_adds_an_attack_through_the_backbone_alone() -> None:
    composite, data, survivors = masked()
    assert 0 < survivors < 25
    found = measurement.measure(composite, data, "cpu", bypass=("front_end",))
    assert found.pop("bpda20_accuracy") == survivors / 40
    assert found["pgd20_accuracy"] > 0.9  # without a gradient there is only the random start
    assert found == measurement.measure(composite, data, "cpu")


def test_measured_composite_is_restored_in_eval_mode() -> None:
    composite, data, _ = masked()
    measurement.measure(composite.train(), data, "cpu", bypass=("front_end",))
    assert not any(module.training for module in composite.modules())
    assert not any("forward" in vars(module) for module in composite.modules())


def test_source_gives_the_gradient_only() -> None:
    composite, data, survivors = masked()
    target, source = Spy(composite), Spy(bypassed(composite, {"front_end": None}))
    assert measurement.correct_under_pgd(target, data, ThreatModel(), "cpu", source) == survivors
    assert target.counts
    assert not any(target.gradients)
    assert sum(source.gradients) >= 20
    assert measurement.correct_under_pgd(target, data, ThreatModel(), "cpu") > survivors
    assert any(target.gradients)


def test_images_only_the_source_gets_wrong_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "pgd", lambda model, images, labels, **rest: images)
    images, model = draw(10, 3, 8, 8), linear()
    with torch.no_grad():
        data = Dataset(images, model(images).argmax(1), "embedded")
        opposed = linear()
        opposed[1].weight.neg_()  # type: ignore[operator]
        opposed[1].bias.neg_()  # type: ignore[operator]
        assert not (opposed(images).argmax(1) == data.labels).any()
    assert measurement.correct_under_pgd(model, data, ThreatModel(), "cpu", opposed) == 10
