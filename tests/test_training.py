from __future__ import annotations

import dataclasses
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_gradmask.checkpoints import load_card, load_model
from pytest_gradmask.datasets import Dataset
from pytest_gradmask.errors import CheckpointError, InputError
from pytest_gradmask.training import __main__ as command
from pytest_gradmask.training import front_ends, loop, measurement
from pytest_gradmask.training.loop import augment, initialised, load_state, perturb, total_steps, train
from pytest_gradmask.training.recipes import Recipe, load_recipe
from tests.toys import draw, linear, seeded

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = Recipe(
    name="tiny",
    architecture="vgg",
    arguments={"layout": [4, "M", 8], "num_classes": 3},
    epochs=4,
    batch_size=16,
    learning_rate=0.1,
)
TOML = """
name = "tiny"
architecture = "vgg"
arguments = { layout = [4, "M", 8], num_classes = 3 }
epochs = 4
batch_size = 16
learning_rate = 0.1
"""


def separable(count: int, seed: int = 0) -> Dataset:
    """Noise of which the channel numbered by the label is brighter."""
    labels = torch.arange(count) % 3
    images = 0.4 * draw(count, 3, 16, 16, seed=seed)
    images[torch.arange(count), labels] += 0.4
    return Dataset(images, labels, "separable")


DATA = separable(48)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def identical(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# recipes


def test_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOML)
    assert load_recipe(tmp_path / "tiny.toml") == TINY


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*.toml")), ids=lambda file: file.stem)
def test_recipes_of_the_fixtures_are_valid(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    assert isinstance(initialised(recipe), nn.Module)


BAD_RECIPES = {
    "no TOML": ("name = ", "is not TOML"),
    "no text": (b"\xff\xfe", "is not TOML"),
    "unknown keys": (TOML + "lr = 1\nsteps = 2", r"unknown keys \['lr', 'steps'\]; known are \['architecture', "),
    "no name": (TOML.replace("name", "seed =", 1).replace('seed = = "tiny"', ""), "has no name; it must be"),
    "no architecture": ('name = "a"', "has no architecture; it must be a key of"),
    "bad value": (TOML + "eps = 8", r"eps=8: must be a number in \[0, 1\]"),
}


@pytest.mark.parametrize(("content", "message"), BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_bad_recipe_is_refused_with_its_file(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"recipe {file}: ")


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml: cannot be read"):
        load_recipe(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../x"),
        ("name", "Upper"),
        ("name", 3),
        ("architecture", ""),
        ("arguments", [1]),
        ("epochs", 0),
        ("epochs", float("inf")),
        ("epochs", "10"),
        ("batch_size", 0),
        ("batch_size", 12.5),
        ("batch_size", True),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1e-4),
        ("label_smoothing", 1.0),
        ("eps", -0.1),
        ("eps", 8),
        ("attack_steps", 0),
        ("attack_step_size", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 1.0),
    ],
)
def test_recipe_names_the_value_it_refuses(key: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(TINY, **{key: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{key}={value!r}: must be ")


def test_integers_are_numbers_to_a_recipe() -> None:
    assert dataclasses.replace(TINY, epochs=2, weight_decay=0, eps=1).epochs == 2


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
    seen: list[tuple[int, torch.Tensor]] = []

    def spy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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


# resuming


class KilledError(Exception):
    """Stands for a signal."""


def kill_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop die in the step after so many, with a state saved after every step before."""
    original, count = loop.augment, iter(range(calls))

    def dying(*args: Any) -> torch.Tensor:
        if next(count, None) is None:
            raise KilledError
        return original(*args)

    monkeypatch.setattr(loop, "augment", dying)
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)


@pytest.mark.parametrize("eps", [0.0, 8 / 255], ids=["clean", "adversarial"])
@pytest.mark.parametrize("calls", [1, 7])
def test_killed_run_ends_as_if_undisturbed(
    calls: int, eps: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(TINY, eps=eps, label_smoothing=0.1)
    undisturbed = weights(train(recipe, DATA))
    with monkeypatch.context() as patch:
        kill_after(calls, patch)
        with pytest.raises(KilledError):
            train(recipe, DATA, state_file=tmp_path / "tiny.state")
    state = load_state(tmp_path / "tiny.state", recipe, len(DATA))
    assert state is not None
    assert state["step"] == calls
    assert identical(weights(train(recipe, DATA, state_file=tmp_path / "tiny.state")), undisturbed)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.state"]


def test_run_killed_twice_ends_as_if_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for calls in (2, 3):
        with monkeypatch.context() as patch:
            kill_after(calls, patch)
            with pytest.raises(KilledError):
                train(TINY, DATA, state_file=tmp_path / "tiny.state")
    assert identical(weights(train(TINY, DATA, state_file=tmp_path / "tiny.state")), weights(train(TINY, DATA)))


def test_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights(train(TINY, DATA, state_file=tmp_path / "tiny.state"))
    kill_after(0, monkeypatch)
    assert identical(weights(train(TINY, DATA, state_file=tmp_path / "tiny.state")), first)


def test_seconds_add_up_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.state"
    with monkeypatch.context() as patch:
        kill_after(6, patch)
        with pytest.raises(KilledError):
            train(TINY, DATA, state_file=file)
    first = load_state(file, TINY, len(DATA))
    train(TINY, DATA, state_file=file)
    second = load_state(file, TINY, len(DATA))
    assert first is not None
    assert second is not None
    assert second["seconds"] > first["seconds"] > 0


def older_state(file: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state as written before recipe, images and seconds were part of it."""
    with monkeypatch.context() as patch:
        kill_after(calls, patch)
        with pytest.raises(KilledError):
            train(TINY, DATA, state_file=file)
    state = torch.load(file, weights_only=True)
    torch.save({key: state[key] for key in ("model", "optimizer", "scheduler", "step")}, file)


def test_state_of_the_older_format_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.state"
    older_state(file, 5, monkeypatch)
    assert identical(weights(train(TINY, DATA, state_file=file)), weights(train(TINY, DATA)))
    state = load_state(file, TINY, len(DATA))
    assert state is not None
    assert state["seconds"] is None  # nobody knows how long the first part took
    assert state["recipe"] == dataclasses.asdict(TINY)


def test_state_of_the_older_format_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.state"
    older_state(file, 5, monkeypatch)
    with pytest.raises(CheckpointError, match=r"another run \(steps is 12 there and 15 here\)"):
        train(dataclasses.replace(TINY, epochs=5), DATA, state_file=file)
    wider = dataclasses.replace(TINY, arguments={"layout": [5, "M", 8], "num_classes": 3})
    with pytest.raises(CheckpointError, match="does not fit recipe 'tiny'"):
        train(wider, DATA, state_file=file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.2}, r"\(learning_rate is 0\.1 there and 0\.2 here\)"),
        ({"seed": 4}, r"\(seed is 0 there and 4 here\)"),
        ({"eps": 0.1, "attack_steps": 2}, r"\(eps is 0\.0 there and 0\.1 here, attack_steps is 1 there and 2 here\)"),
    ],
)
def test_state_of_another_recipe_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "tiny.state"
    train(TINY, DATA, state_file=file)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        train(dataclasses.replace(TINY, **change), DATA, state_file=file)
    assert str(file) in str(caught.value)
    assert "delete it to train 'tiny' anew" in str(caught.value)
    assert file.read_bytes() == before


def test_state_of_other_data_is_refused(tmp_path: Path) -> None:
    train(TINY, DATA, state_file=tmp_path / "tiny.state")
    with pytest.raises(CheckpointError, match=r"\(images is 48 there and 47 here\)"):
        train(TINY, separable(47), state_file=tmp_path / "tiny.state")


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "not a state"])
def test_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "tiny.state"
    train(TINY, DATA, state_file=file)
    content = {"text": b"not a state", "truncated": file.read_bytes()[:1000], "empty": b""}.get(damage)
    if content is None:
        torch.save({"weights": 1}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tiny\.state: (cannot be read|is not the state of a training run)"):
        train(TINY, DATA, state_file=file)


class Boom:
    """Tells on whoever unpickles it."""

    opened = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Boom, "opened", True)


def test_pickle_in_a_state_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": Boom(), "optimizer": {}, "scheduler": {}, "step": 0}, tmp_path / "tiny.state")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path / "tiny.state", TINY, len(DATA))
    assert not Boom.opened


# measuring


def linearly_robust(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which images of a linear classifier have no adversarial example in the ball, exactly."""
    up, down = (1 - images).clamp(max=8 / 255).flatten(1), images.clamp(max=8 / 255).flatten(1)
    with torch.no_grad():
        logits, (weight, _) = model(images), (parameter.detach() for parameter in model.parameters())
        difference = weight[None] - weight[labels][:, None]  # N x K x D
        reach = (difference.clamp(min=0) * up[:, None] - difference.clamp(max=0) * down[:, None]).sum(2)
        margins = logits - logits.gather(1, labels[:, None]) + reach
    strongest: torch.Tensor = margins.scatter(1, labels[:, None], -1.0).amax(1)
    return strongest < 0


def test_measurement_counts_and_attacks_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_BATCH", 16)
    monkeypatch.setattr(measurement, "_PGD_IMAGES", 40)
    images = draw(50, 3, 8, 8)
    model = linear()
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:10] = (labels[:10] + 1) % 4
    survivors = int(linearly_robust(model, images[:40], labels[:40]).sum())
    assert 0 < survivors < 30
    found = measurement.measure(model, Dataset(images, labels, "npz:/some/where/toys.npz"), "cpu")
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
    labels[:5] = (labels[:5] + 1) % 4  # wrong to begin with: no survivors, whatever the attack returns
    assert measurement.measure(model, Dataset(images, labels, "embedded"), "cpu")["pgd20_accuracy"] == 0.75


# the command that trains


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A directory with a recipe and data to train it on."""
    (tmp_path / "tiny.toml").write_text(TOML)
    train_data, test_data = separable(48), separable(24, seed=1)
    arrays = {}
    for split, data in (("train", train_data), ("test", test_data)):
        arrays[f"{split}_x"] = (data.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_y"] = data.labels.numpy()
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path


def arguments(workshop: Path, *recipes: str, **options: str) -> list[str]:
    given = {
        "data": f"npz:{workshop / 'data.npz'}",
        "test": f"npz:{workshop / 'data.npz'}",
        "output": str(workshop / "out"),
        "state": str(workshop / "states"),
        "device": "cpu",
        **options,
    }
    files = [str(workshop / recipe) for recipe in recipes or ("tiny.toml",)]
    return [*files, *(word for key, value in given.items() for word in (f"--{key}", value))]


def test_command_trains_measures_and_saves(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data", f"npz:{workshop / 'data.npz'}"]
    assert command.main([*arguments(workshop), *more]) == 0
    assert capsys.readouterr().err == ""
    assert sorted(file.name for file in (workshop / "out").iterdir()) == ["tiny.json", "tiny.safetensors"]
    card, text = load_card("tiny", workshop / "out"), (workshop / "out" / "tiny.json").read_text()
    assert str(workshop) not in text
    assert card["architecture"] == "vgg"
    assert card["arguments"] == TINY.arguments
    assert card["recipe"] == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert card["data"] == [{"kind": "npz", "name": "data.npz", "images": 48}] * 2
    assert card["seed"] == 0
    assert card["versions"].keys() == {"python", "torch", "torchvision", "timm"}
    assert card["device"] == "cpu"
    assert card["training_seconds"] > 0
    measured = card["measured"]
    assert measured["data"] == {"kind": "npz", "name": "data.npz", "images": 24}
    assert (measured["images"], measured["pgd_images"]) == (24, 24)
    assert measured["pgd20_accuracy"] <= measured["clean_accuracy"]
    low, high = measured["clean_bounds_99"]
    assert low < measured["clean_accuracy"] <= high
    model, test = load_model("tiny", workshop / "out"), separable(24, seed=1)
    with torch.no_grad():
        accuracy = (model((test.images * 255).round() / 255).argmax(1) == test.labels).float().mean().item()
    assert measured["clean_accuracy"] == pytest.approx(accuracy)


def test_command_saves_what_the_recipe_trains(workshop: Path) -> None:
    assert command.main(arguments(workshop)) == 0
    data = separable(48)
    rounded = Dataset((data.images * 255).round() / 255, data.labels, "rounded")
    assert identical(weights(load_model("tiny", workshop / "out")), weights(train(TINY, rounded)))


def test_command_takes_several_recipes_and_continues_killed_ones(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workshop / "second.toml").write_text(TOML.replace('"tiny"', '"second"') + "seed = 5\neps = 0.03")
    both = arguments(workshop, "tiny.toml", "second.toml")
    with monkeypatch.context() as patch:
        kill_after(15, patch)
        with pytest.raises(KilledError):
            command.main(both)
    assert sorted(file.name for file in (workshop / "states").iterdir()) == ["second.state", "tiny.state"]
    assert command.main(both) == 0
    names = ["second.json", "second.safetensors", "tiny.json", "tiny.safetensors"]
    assert sorted(file.name for file in (workshop / "out").iterdir()) == names
    undisturbed = arguments(workshop, "second.toml", output=str(workshop / "out2"), state=str(workshop / "states2"))
    assert command.main(undisturbed) == 0
    assert identical(weights(load_model("second", workshop / "out")), weights(load_model("second", workshop / "out2")))


def test_command_writes_to_the_fixtures_by_default(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.training.provenance.fixtures_directory", lambda: workshop / "fixtures")
    given = arguments(workshop)
    del given[given.index("--output") : given.index("--output") + 2]
    assert command.main(given) == 0
    assert (workshop / "fixtures" / "tiny.safetensors").is_file()


def refused(given: list[str], workshop: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, see that it fails as it should, and return its message."""
    before = sorted(workshop.rglob("*"))
    assert command.main(given) == 2
    assert sorted(workshop.rglob("*")) == before  # nothing was written
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs = many", "is not TOML"),
        ("speed = 1", "unknown keys ['speed']"),
        ("label_smoothing = 2", "label_smoothing=2: must be"),
    ],
)
def test_command_refuses_a_bad_recipe(
    workshop: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    (workshop / "bad.toml").write_text(TOML.replace('"tiny"', '"bad"') + change)
    error = refused(arguments(workshop, "tiny.toml", "bad.toml"), workshop, capsys)
    assert str(workshop / "bad.toml") in error
    assert message in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"vgg"', '"lenet"', "recipe 'tiny': architecture 'lenet': unknown; use one of"),
        ("num_classes", "classes", "recipe 'tiny': architecture 'vgg': cannot be built with"),
        ("num_classes = 3", "num_classes = 2", "returns (2,) for an image, and labels go up to 2; raise num_classes"),
        ('"vgg"\narguments', '"dncnn"\n#', "returns (3, 16, 16) for an image"),
        ('"M", 8', '"M", "M", "M", "M", "M"', "does not work on images of shape (3, 16, 16)"),
        ("epochs = 4", "epochs = 0.1", "raise epochs or lower batch_size"),
    ],
)
def test_command_refuses_a_recipe_that_does_not_fit(
    workshop: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert old in TOML
    (workshop / "tiny.toml").write_text(TOML.replace(old, new))
    assert message in refused(arguments(workshop), workshop, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "mnist"}, "data 'mnist': unknown kind"),
        ({"data": "npz:absent.npz"}, "no such file: absent.npz"),
        ({"test": "imagefolder:absent"}, "no such directory: absent"),
        ({"test": "cifar10:absent"}, "data 'cifar10': not usable in absent"),
        ({"data": "embedded", "test": "embedded"}, "labels go up to 9"),
    ],
)
def test_command_refuses_bad_data(
    workshop: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], message: str
) -> None:
    assert message in refused(arguments(workshop, **options), workshop, capsys)


def test_command_refuses_to_mix_sizes(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused([*arguments(workshop), "--data", "embedded"], workshop, capsys)
    assert "data 'embedded': images of shape (3, 32, 32) do not go with (3, 16, 16)" in error


def test_command_refuses_two_recipes_of_one_name(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(arguments(workshop, "tiny.toml", "tiny.toml"), workshop, capsys)
    assert "more than one is named tiny" in error


def test_command_refuses_a_missing_gpu(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: torch sees no such device" in refused(arguments(workshop, device="cuda"), workshop, capsys)


@pytest.mark.parametrize("option", ["output", "state"])
def test_command_refuses_a_file_as_directory(workshop: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    given = arguments(workshop, **{option: str(workshop / "tiny.toml")})
    assert "is a file; name a directory" in refused(given, workshop, capsys)


def test_command_refuses_the_state_of_another_recipe(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments(workshop)) == 0
    (workshop / "tiny.toml").write_text(TOML + "seed = 1")
    assert "seed is 0 there and 1 here" in refused(arguments(workshop), workshop, capsys)


def test_command_reports_a_diverged_loss(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.functional.cross_entropy
    monkeypatch.setattr(loop, "cross_entropy", lambda *args, **kwargs: original(*args, **kwargs) * float("nan"))
    assert command.main(arguments(workshop)) == 2
    assert "error: recipe 'tiny': the loss is nan at step 1 of 12" in capsys.readouterr().err
    assert not (workshop / "out").exists()


@pytest.mark.parametrize(
    "given",
    [[], ["a.toml"], ["a.toml", "--data", "x"], ["a.toml", "--data", "x", "--test", "y", "--device", "tpu"]],
    ids=["nothing", "no data", "no test", "unknown device"],
)
def test_command_line_errors_exit_with_2(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(given)
    assert caught.value.code == 2
    assert "usage: python -m pytest_gradmask.training" in capsys.readouterr().err


@pytest.mark.parametrize("main", [command.main, front_ends.main])
def test_help_explains_every_option(main: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "imagefolder:DIR" in text
    assert "Exit status" in text
    assert "--output" in text


# the command that makes front ends


def make(workshop: Path, *more: str) -> list[str]:
    small = ["--depth", "5", "--width", "4", "--images", "32", "--data", f"npz:{workshop / 'data.npz'}"]
    return ["front", *small, "--output", str(workshop / "out"), *more]


def test_front_end_command_saves_a_calibrated_front_end(workshop: Path) -> None:
    assert front_ends.main(make(workshop, "--residual-std", "0.01", "--seed", "3")) == 0
    card, text = load_card("front", workshop / "out"), (workshop / "out" / "front.json").read_text()
    assert str(workshop) not in text
    assert card["architecture"] == "dncnn"
    assert card["arguments"] == {"depth": 5, "width": 4, "channels": 3}
    assert card["data"] == [{"kind": "npz", "name": "data.npz", "images": 32}]
    assert (card["seed"], card["residual_std"]) == (3, 0.01)
    assert card["versions"].keys() == {"python", "torch", "torchvision", "timm"}
    assert "no training" in card["method"]
    assert card["measured"]["residual_std"] == pytest.approx(0.01, rel=1e-3)
    assert 0 < card["measured"]["mean_absolute_change"] < 0.01
    model, images = load_model("front", workshop / "out"), draw(4, 3, 16, 16)
    with torch.no_grad():
        assert 0 < (model(images) - images).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--depth", "2"], "a DnCNN needs a depth of at least 3"),
        (["--residual-std", "0"], "residual_std=0.0: must be above 0"),
        (["--images", "49"], "samples 49"),
        (["--data", "npz:absent.npz"], "no such file"),
        (["--output", __file__], "is a file; name a directory"),
    ],
)
def test_front_end_command_refuses_bad_input(
    workshop: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert front_ends.main(make(workshop, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (workshop / "out").exists()


def test_front_end_command_refuses_a_bad_name_and_seed(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front_ends.main(["../front", *make(workshop)[1:]]) == 2
    assert "lower-case letters, digits and dashes only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        front_ends.main(make(workshop, "--seed", "-1"))
    assert "must be an integer from 0 to 2**32 - 1" in capsys.readouterr().err
    assert not (workshop / "out").exists()


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


def test_recalibration_sets_batch_norm_to_the_calibration_images_and_leaves_weights() -> None:
    shifted = Dataset(DATA.images * 0.5, DATA.labels, "darker")
    plain, moved = (
        train(dataclasses.replace(TINY, recalibrate=recalibrate), DATA, calibration=shifted)
        for recalibrate in (False, True)
    )
    assert identical(dict(plain.named_parameters()), dict(moved.named_parameters()))
    norm = next(module for module in moved.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        moved(shifted.images)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert not moved.training


def test_the_command_refuses_an_initial_checkpoint_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(TOML + 'initial = "nowhere"\n')
    images = (DATA.images.permute(0, 2, 3, 1) * 255).byte().numpy()
    np.savez(tmp_path / "data.npz", images=images, labels=DATA.labels.numpy())
    spec, out = f"npz:{tmp_path / 'data.npz'}", tmp_path / "out"
    arguments = [str(tmp_path / "tiny.toml"), "--data", spec, "--test", spec, "--output", str(out)]
    assert command.main([*arguments, "--state", str(tmp_path / "state")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not out.exists()
