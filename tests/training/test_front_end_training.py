"""Training a front end before a frozen backbone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.loading.models.composites import Composite
from pytest_gradmask.loading.models.front_ends import DnCNN, calibrated_front_end
from pytest_gradmask.training import loop
from pytest_gradmask.training.loop import Progress, initialised, train
from pytest_gradmask.training.recipes import Recipe
from tests.training.training_toys import DATA, GUARDED, TINY, identical, separable, weights

#: Does not change in training: there is no batch norm, and the learning rate is almost zero.
STILL = dataclasses.replace(
    GUARDED, arguments={**GUARDED.arguments, "norm": False}, learning_rate=1e-12, epochs=2, seed=5
)
DARKER = Dataset(0.5 * separable(40, seed=3).images, DATA.labels[:40], "darker")


def backbone() -> nn.Module:
    """An untrained classifier in training mode, with the batch norm statistics of its data."""
    model = initialised(TINY).train()
    with torch.no_grad():
        model(DATA.images)
    return model


# the backbone


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(
    "change",
    [{}, {"eps": 0.03, "attack_steps": 2}, {"optimizer": "sgd", "weight_decay": 0.1}, {"recalibrate": True}],
    ids=["clean", "adversarial", "sgd", "recalibrated"],
)
def test_backbone_is_left_as_it_was(change: dict[str, Any], training: bool) -> None:
    classifier = backbone().train(training)
    next(classifier.parameters()).requires_grad_(False)
    classifier.get_submodule("1").train(not training)  # another mode than the rest
    before = copy.deepcopy(classifier)
    train(dataclasses.replace(GUARDED, **change), DATA, backbone=classifier)
    assert identical(weights(classifier), weights(before))
    assert [p.requires_grad for p in classifier.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [module.training for module in classifier.modules()] == [module.training for module in before.modules()]
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert [p.stride() for p in classifier.parameters()] == [p.stride() for p in before.parameters()]


def test_backbone_is_in_eval_mode_without_gradients() -> None:
    classifier, seen = backbone().train(), set()
    for module in classifier.modules():  # a copy keeps these hooks
        module.register_forward_pre_hook(
            lambda module, _: seen.add((module.training, any(p.requires_grad for p in module.parameters())))
        )
    train(dataclasses.replace(GUARDED, eps=0.03), DATA, backbone=classifier)
    assert seen == {(False, False)}


def test_mode_of_the_backbone_makes_no_difference() -> None:
    first, second = (train(GUARDED, DATA, backbone=backbone().train(mode)) for mode in (False, True))
    assert identical(weights(first), weights(second))


# the front end


def test_result_is_the_front_end_in_eval_mode() -> None:
    front_end = train(GUARDED, DATA, backbone=backbone())
    assert isinstance(front_end, DnCNN)
    assert weights(front_end).keys() == weights(DnCNN(**GUARDED.arguments)).keys()
    assert not any(module.training for module in front_end.modules())
    assert all(parameter.requires_grad for parameter in front_end.parameters())


@pytest.mark.parametrize("eps", [0.0, 0.03])
def test_front_end_learns_to_help_its_backbone(eps: float) -> None:
    classifier = backbone().eval()
    recipe = dataclasses.replace(GUARDED, eps=eps, epochs=8)
    untrained = dataclasses.replace(recipe, learning_rate=1e-12)
    start, end = (train(each, DATA, backbone=classifier) for each in (untrained, recipe))
    test = separable(60, seed=1)
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(classifier(each(test.images)), test.labels) for each in (start, end)]
    assert losses[1] < losses[0] - 0.1
    moved = {key for key, value in end.named_parameters() if not torch.equal(value, start.get_parameter(key))}
    assert moved == dict(end.named_parameters()).keys()


def test_attack_uses_the_gradient_of_the_composite(monkeypatch: pytest.MonkeyPatch) -> None:
    original, classifier = loop.perturb, backbone().eval()
    attacked: list[nn.Module] = []

    def spy(model: nn.Module, images: Tensor, *rest: Any) -> Tensor:
        assert isinstance(model, Composite)
        assert model.front_end.training
        attacked.append(model)
        with torch.no_grad():
            torch.testing.assert_close(model(images), classifier(model.front_end(images)))
        return original(model, images, *rest)

    monkeypatch.setattr(loop, "perturb", spy)
    train(dataclasses.replace(GUARDED, eps=0.03), DATA, backbone=classifier)
    assert len(attacked) == 12


def test_reported_loss_is_that_of_the_composite() -> None:
    classifier, seen = backbone().eval(), list[Progress]()
    recipe = dataclasses.replace(STILL, batch_size=48, epochs=5)
    front_end = train(recipe, DATA, backbone=classifier, report=seen.append)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(classifier(front_end(DATA.images)), DATA.labels).item()
    assert [progress.loss for progress in seen] == pytest.approx([loss] * 5, rel=0.05)  # of shifted images


@pytest.mark.parametrize(
    ("recipe", "classifier"), [(GUARDED, None), (TINY, initialised(TINY))], ids=["missing", "surplus"]
)
def test_backbone_must_be_what_the_recipe_asks_for(recipe: Recipe, classifier: nn.Module | None) -> None:
    with pytest.raises(
        InputError, match=f"backbone: recipe '{recipe.name}' has backbone='{recipe.backbone}'; pass what it asks for"
    ):
        train(recipe, DATA, backbone=classifier)


# where it starts


def calibrated_on(images: Tensor) -> dict[str, Tensor]:
    front_end = calibrated_front_end(images, residual_std=0.02, seed=STILL.seed, **STILL.arguments)
    return weights(front_end)


def close(front_end: nn.Module, expected: dict[str, Tensor]) -> bool:
    found = weights(front_end)
    return all(torch.allclose(found[key], expected[key], rtol=1e-5, atol=1e-7) for key in expected)


@pytest.mark.parametrize("asked", [0.02, 0.1])
def test_front_end_starts_with_the_asked_residual(asked: float) -> None:
    front_end = train(dataclasses.replace(STILL, residual_std=asked), DATA, backbone=backbone())
    with torch.no_grad():
        assert (front_end(DATA.images) - DATA.images).std().item() == pytest.approx(asked, rel=1e-3)


def test_front_end_starts_as_drawn_without_a_size() -> None:
    recipe = dataclasses.replace(STILL, residual_std=0.0)
    front_end = train(recipe, DATA, backbone=backbone(), calibration=DARKER)
    assert close(front_end, weights(initialised(recipe)))
    assert not close(front_end, calibrated_on(DATA.images))


@pytest.mark.parametrize("calibration", [None, DARKER], ids=["training images", "calibration images"])
@pytest.mark.parametrize("most", [512, 8])
def test_front_end_calibration_has_a_maximum_of_images(
    calibration: Dataset | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_CALIBRATION_IMAGES", most)
    used, other = (DARKER, DATA) if calibration else (DATA, DARKER)
    front_end = train(STILL, DATA, backbone=backbone(), calibration=calibration)
    assert close(front_end, calibrated_on(used.subset(min(most, len(used)), STILL.seed).images))
    assert close(front_end, calibrated_on(used.images)) is (most > len(used))
    assert not close(front_end, calibrated_on(other.images))


def test_calibration_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    train(GUARDED, DATA, backbone=backbone())
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_front_end_is_not_calibrated_again() -> None:
    earlier = DnCNN(**STILL.arguments)
    recipe = dataclasses.replace(STILL, initial="earlier")
    assert close(train(recipe, DATA, backbone=backbone(), initial=earlier), weights(earlier))
