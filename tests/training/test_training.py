"""The training loop."""

from __future__ import annotations

import dataclasses
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.training import __main__ as command
from pytest_gradmask.training import loop
from pytest_gradmask.training.loop import augment, initialised, perturb, total_steps, train
from pytest_gradmask.training.state import load_state
from tests.toys import draw, linear, seeded
from tests.training.training_toys import DATA, TINY, TOML, identical, separable, weights

# parts of the loop


def test_augmentation_shifts_and_mirrors_each_image() -> None:
    images = draw(64, 3, 8, 8)
    found = augment(images, seeded())
    assert found.shape == images.shape
    assert torch.equal(found, augment(images, seeded()))
    padded = nn.functional.pad(images, [4] * 4, mode="reflect")
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # N x C x 9 x 9 x 8 x 8
    seen = set()
    for image, candidates in zip(found, windows, strict=True):
        plain = (candidates == image[:, None, None]).all(-1).all(-1).all(0)
        mirrored = (candidates.flip(-1) == image[:, None, None]).all(-1).all(-1).all(0)
        assert plain.any() or mirrored.any()
        seen.add((bool(plain.any()), *map(int, (plain | mirrored).nonzero()[0])))
    assert len(seen) > 30


@pytest.mark.parametrize(("steps", "step_size"), [(1, 1.0), (1, 3.0), (4, 0.5)])
def test_perturbation_stays_in_the_ball_and_the_bounds(steps: int, step_size: float) -> None:
    eps = 8 / 255
    recipe = dataclasses.replace(TINY, eps=eps, attack_steps=steps, attack_step_size=step_size)
    images = torch.cat([draw(8, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    found = perturb(linear(), images, torch.arange(10) % 4, recipe, seeded())
    assert (found - images).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad


def test_perturbation_raises_the_loss_more_than_noise_does() -> None:
    recipe = dataclasses.replace(TINY, eps=8 / 255)
    model, images, labels = linear(), draw(32, 3, 8, 8), torch.arange(32) % 4
    noise = recipe.eps * (2 * draw(32, 3, 8, 8, seed=1) - 1)
    found = perturb(model, images, labels, recipe, seeded())
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(each), labels) for each in (images + noise, found)]
    assert losses[1] > losses[0] + 1


@pytest.mark.parametrize(("images", "expected"), [(48, 12), (49, 16), (33, 12)])
def test_steps_count_the_last_incomplete_batch(images: int, expected: int) -> None:
    assert total_steps(TINY, images) == expected
    assert total_steps(dataclasses.replace(TINY, epochs=2.5), images) == round(2.5 * expected / 4)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(InputError, match=r"'tiny': epochs=1 over 48 images .*batch_size=16 are 3 steps; raise epochs"):
        train(dataclasses.replace(TINY, epochs=1), DATA)


# training


def test_training_learns_a_separable_problem() -> None:
    model = train(dataclasses.replace(TINY, epochs=8), DATA)
    test = separable(60, seed=1)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        trained = nn.functional.cross_entropy(model(test.images), test.labels)
        before = nn.functional.cross_entropy(initialised(TINY).eval()(test.images), test.labels)
        accuracy = (model(test.images).argmax(1) == test.labels).float().mean()
    assert trained < before / 2
    assert accuracy > 0.95


def test_training_is_decided_by_recipe_and_seed() -> None:
    first = weights(train(TINY, DATA))
    torch.rand(3)
    assert identical(weights(train(TINY, DATA)), first)
    assert not identical(weights(train(dataclasses.replace(TINY, seed=1), DATA)), first)
    assert not identical(weights(train(dataclasses.replace(TINY, eps=0.1), DATA)), first)


def test_every_step_draws_other_images_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Tensor]] = []

    def spy(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((generator.initial_seed(), images))
        return images

    monkeypatch.setattr(loop, "augment", spy)
    train(TINY, DATA)
    assert len({seed for seed, _ in seen}) == 12
    epochs = [torch.cat([images for _, images in seen[first : first + 3]]) for first in (0, 3)]
    assert not torch.equal(*epochs)
    for images in epochs:  # every image once
        assert torch.equal(images.flatten(1).sum(1).sort().values, DATA.images.flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("eps", [0.0, 8 / 255])
def test_training_leaves_the_global_random_state_alone(eps: float) -> None:
    states = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    train(dataclasses.replace(TINY, eps=eps), DATA)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (repr(np.random.get_state()), random.getstate()) == states[1:]


def test_progress_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOG_EVERY_STEPS", 5)
    with caplog.at_level(logging.INFO, loop.__name__):
        train(TINY, DATA)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "tiny: step 5/12",
        "tiny: step 10/12",
        "tiny: step 12/12",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_training(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.0, value])
    original = nn.functional.cross_entropy
    monkeypatch.setattr(loop, "cross_entropy", lambda *args, **kwargs: original(*args, **kwargs) * next(losses))
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)
    with pytest.raises(InputError, match=rf"'tiny': the loss is {value} at step 3 of 12; lower learning_rate=0\.1"):
        train(TINY, DATA, state_file=tmp_path / "tiny.state")
    state = load_state(tmp_path / "tiny.state", TINY, len(DATA))
    assert state is not None
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


# warm starts and recalibration


def test_training_starts_from_initial_weights() -> None:
    first = train(TINY, DATA)
    recipe = dataclasses.replace(TINY, name="second", initial="tiny", learning_rate=1e-9, weight_decay=0.0)
    second = train(recipe, DATA, initial=first)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_initial_weights_of_another_shape_are_refused() -> None:
    other = train(dataclasses.replace(TINY, arguments={"layout": [5, "M", 8], "num_classes": 3}), DATA)
    with pytest.raises(InputError, match="initial='tiny' does not fit"):
        train(dataclasses.replace(TINY, initial="tiny"), DATA, initial=other)


def test_recalibration_changes_batch_norm_statistics_only() -> None:
    shifted = Dataset(DATA.images * 0.5, DATA.labels, "darker")
    plain, moved = (
        train(dataclasses.replace(TINY, recalibrate=recalibrate), DATA, calibration=shifted)
        for recalibrate in (False, True)
    )
    assert identical(dict(plain.named_parameters()), dict(moved.named_parameters()))
    norm = next(module for module in moved.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        moved(shifted.images)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert not moved.training


def test_command_refuses_a_missing_initial_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text(TOML + 'initial = "nowhere"\n')
    images = (DATA.images.permute(0, 2, 3, 1) * 255).byte().numpy()
    np.savez(tmp_path / "data.npz", images=images, labels=DATA.labels.numpy())
    spec, out = f"npz:{tmp_path / 'data.npz'}", tmp_path / "out"
    arguments = [str(tmp_path / "tiny.toml"), "--data", spec, "--test", spec, "--output", str(out)]
    assert command.main([*arguments, "--state", str(tmp_path / "state")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not out.exists()
