"""The command that trains, with recipes of front ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pytest_gradmask.loading import checkpoints
from pytest_gradmask.loading.checkpoints import load_card, load_checkpoint, save_model
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.loading.models.composites import Composite
from pytest_gradmask.loading.models.front_ends import DnCNN
from pytest_gradmask.training import __main__ as command
from pytest_gradmask.training.loop import initialised, train
from pytest_gradmask.training.recipes import Recipe, load_recipe
from tests.training.training_toys import (
    GUARDED,
    GUARDED_TOML,
    TINY,
    TOML,
    KilledError,
    arguments,
    identical,
    kill_after,
    refused,
    separable,
    weights,
)

BOTH = ("tiny.toml", "guarded.toml")
MADE = ["guarded-front-end.json", "guarded-front-end.safetensors", "guarded.json"]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def rounded(data: Dataset) -> Dataset:
    """The images as the command reads them from 8-bit files."""
    return Dataset((data.images * 255).round() / 255, data.labels, "rounded")


def save(recipe: Recipe, folder: Path) -> None:
    """Save a recipe's untrained model."""
    card = {"architecture": recipe.architecture, "arguments": recipe.arguments}
    save_model(recipe.name, initialised(recipe), card, folder)


@pytest.fixture
def package(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fixtures of the package: a backbone named tiny."""
    folder = workshop / "package"
    save(TINY, folder)
    monkeypatch.setattr(checkpoints, "fixtures_directory", lambda: folder)
    return folder


# what is saved


def test_one_command_trains_backbone_and_front_end(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments(workshop, *BOTH)) == 0
    assert capsys.readouterr().err == ""
    assert names(workshop / "out") == [*MADE, "tiny.json", "tiny.safetensors"]
    assert names(workshop / "states") == ["guarded.state", "tiny.state"]
    data = rounded(separable(48))
    backbone = train(TINY, data)
    front_end = train(GUARDED, data, backbone=backbone)
    composite = load_checkpoint("guarded", workshop / "out")
    assert isinstance(composite, Composite)
    assert isinstance(composite.front_end, DnCNN)
    assert identical(weights(composite), weights(Composite(front_end, backbone)))


def test_composite_card_has_parts_and_measurements(workshop: Path) -> None:
    assert command.main(arguments(workshop, *BOTH)) == 0
    card = load_card("guarded", workshop / "out")
    measured = card.pop("measured")
    assert card == {"architecture": "composite", "front_end": "guarded-front-end", "backbone": "tiny"}
    assert str(workshop) not in (workshop / "out" / "guarded.json").read_text()
    assert measured["data"] == {"kind": "npz", "name": "data.npz", "images": 24}
    test = rounded(separable(24, seed=1))
    with torch.no_grad():
        correct = load_checkpoint("guarded", workshop / "out")(test.images).argmax(1) == test.labels
    assert measured["clean_accuracy"] == pytest.approx(correct.float().mean().item())
    assert 0 <= measured["bpda20_accuracy"] <= measured["clean_accuracy"]
    assert 0 <= measured["pgd20_accuracy"] <= measured["clean_accuracy"]


def test_front_end_card_has_its_training(workshop: Path) -> None:
    assert command.main(arguments(workshop, *BOTH)) == 0
    assert str(workshop) not in (workshop / "out" / "guarded-front-end.json").read_text()
    card = load_card("guarded-front-end", workshop / "out")
    assert (card["architecture"], card["arguments"]) == ("dncnn", GUARDED.arguments)
    assert card["recipe"] == json.loads(json.dumps(dataclasses.asdict(GUARDED)))
    assert card["data"] == [{"kind": "npz", "name": "data.npz", "images": 48}]
    assert card["calibration"] == {"kind": "npz", "name": "data.npz", "images": 48}
    assert card["training_seconds"] > 0
    assert "measured" not in card  # alone, it classifies nothing


def test_cards_have_the_history_of_the_training(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.training.loop._LOG_EVERY_STEPS", 5)
    assert command.main(arguments(workshop, *BOTH)) == 0
    for name in ("tiny", "guarded-front-end"):
        history = load_card(name, workshop / "out")["history"]
        assert [entry["step"] for entry in history] == [5, 10, 12]
        assert all(entry.keys() == {"step", "loss", "accuracy"} for entry in history)
        assert all(entry["loss"] > 0 and 0 <= entry["accuracy"] <= 1 for entry in history)


def test_measurement_attacks_the_asked_number_of_images(workshop: Path) -> None:
    command_line = arguments(workshop, *BOTH, **{"pgd-images": "7"})
    assert command.main(command_line) == 0
    for name in ("tiny", "guarded"):
        assert load_card(name, workshop / "out")["measured"]["pgd_images"] == 7


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "many"])
def test_impossible_number_of_images_is_refused(count: str, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([*arguments(workshop), f"--pgd-images={count}"])
    assert caught.value.code == 2
    assert f"'{count}': must be an integer of at least 1" in capsys.readouterr().err
    assert not (workshop / "out").exists()


# the source of the backbone


def test_backbone_of_an_earlier_command_is_used(workshop: Path) -> None:
    assert command.main(arguments(workshop, "tiny.toml")) == 0
    before = {name: (workshop / "out" / name).read_bytes() for name in names(workshop / "out")}
    assert command.main(arguments(workshop, "guarded.toml")) == 0
    assert {name: (workshop / "out" / name).read_bytes() for name in before} == before
    together = arguments(workshop, *BOTH, output=str(workshop / "out2"), state=str(workshop / "states2"))
    assert command.main(together) == 0
    first, second = (load_checkpoint("guarded", workshop / folder) for folder in ("out", "out2"))
    assert identical(weights(first), weights(second))


def test_backbone_from_the_fixtures_of_the_package(workshop: Path, package: Path) -> None:
    assert command.main(arguments(workshop, "guarded.toml")) == 0
    assert names(workshop / "out") == MADE
    assert names(package) == ["tiny.json", "tiny.safetensors"]
    composite = load_checkpoint("guarded", workshop / "out")
    backbone = load_checkpoint("tiny")
    front_end = train(GUARDED, rounded(separable(48)), backbone=backbone)
    assert identical(weights(composite), weights(Composite(front_end, backbone)))


def test_backbone_in_the_output_comes_first(workshop: Path, package: Path) -> None:
    mine = dataclasses.replace(TINY, seed=9)
    save(mine, workshop / "out")
    assert command.main(arguments(workshop, "guarded.toml")) == 0
    composite = load_checkpoint("guarded", workshop / "out")
    assert isinstance(composite, Composite)
    assert identical(weights(composite.backbone), weights(initialised(mine)))
    assert not identical(weights(composite.backbone), weights(load_checkpoint("tiny", package)))
    front_end = train(GUARDED, rounded(separable(48)), backbone=initialised(mine))
    assert identical(weights(composite.front_end), weights(front_end))


def test_absent_backbone_is_refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "checkpoint 'tiny': no card" in refused(arguments(workshop, "guarded.toml"), workshop, capsys)


def test_backbone_is_trained_first_in_any_order(workshop: Path) -> None:
    for folder, recipes in (("out", BOTH), ("out2", BOTH[::-1])):
        assert command.main(arguments(workshop, *recipes, output=str(workshop / folder))) == 0
    first, second = (load_checkpoint("guarded", workshop / folder) for folder in ("out", "out2"))
    assert identical(weights(first), weights(second))


@pytest.mark.usefixtures("package")
def test_killed_front_end_is_continued(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_after(5, patch)
        with pytest.raises(KilledError):
            command.main(arguments(workshop, "guarded.toml"))
    assert not (workshop / "out").exists()
    assert command.main(arguments(workshop, "guarded.toml")) == 0
    undisturbed = arguments(workshop, "guarded.toml", output=str(workshop / "out2"), state=str(workshop / "states2"))
    assert command.main(undisturbed) == 0
    first, second = (load_checkpoint("guarded-front-end", workshop / folder) for folder in ("out", "out2"))
    assert identical(weights(first), weights(second))


@pytest.mark.usefixtures("package")
def test_front_end_starts_from_one_of_the_command(workshop: Path) -> None:
    again = GUARDED_TOML.replace('"guarded"', '"again"').replace("0.01", "1e-12")
    (workshop / "again.toml").write_text(again + 'initial = "guarded-front-end"\n')
    assert command.main(arguments(workshop, "again.toml", "guarded.toml")) == 0
    first, second = (load_checkpoint(f"{name}-front-end", workshop / "out") for name in ("guarded", "again"))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# what does not fit


def test_recipes_that_need_each_other_are_refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workshop / "tiny.toml").write_text(TOML + 'initial = "other"\n')
    (workshop / "other.toml").write_text(TOML.replace('"tiny"', '"other"') + 'initial = "tiny"\n')
    error = refused(arguments(workshop, "tiny.toml", "other.toml"), workshop, capsys)
    assert "tiny" in error
    assert "other" in error
    assert "one of them must start anew" in error


def test_recipe_with_the_name_of_a_front_end(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workshop / "more.toml").write_text(TOML.replace('"tiny"', '"guarded-front-end"'))
    error = refused(arguments(workshop, *BOTH, "more.toml"), workshop, capsys)
    assert "more than one is named guarded-front-end" in error


RESNET_TOML = """
name = "tiny"
architecture = "resnet"
arguments = { channels = [4, 4, 4, 4], num_classes = 3 }
"""


@pytest.mark.parametrize("trained", ["earlier", "in the command"])
@pytest.mark.parametrize("backbone", [TOML, RESNET_TOML], ids=["vgg", "resnet, to which logits are a row of pixels"])
def test_classifier_is_no_front_end(
    backbone: str, trained: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workshop / "tiny.toml").write_text(backbone)
    (workshop / "guarded.toml").write_text(TOML.replace("tiny", "guarded") + 'backbone = "tiny"\n')
    if trained == "earlier":
        save(load_recipe(workshop / "tiny.toml"), workshop / "out")
    recipes = BOTH if trained == "in the command" else ("guarded.toml",)
    error = refused(arguments(workshop, *recipes), workshop, capsys)
    assert "recipe 'guarded': architecture 'vgg' is no front end: it makes (3,) of (3, 16, 16); use 'dncnn'" in error


@pytest.mark.parametrize("recipes", [BOTH, ("guarded.toml",)], ids=["backbone in the command", "backbone earlier"])
def test_front_end_for_other_images_is_refused(
    recipes: tuple[str, ...], workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workshop / "guarded.toml").write_text(GUARDED_TOML.replace("width = 4", "width = 4, channels = 1"))
    if recipes != BOTH:
        save(TINY, workshop / "out")
    error = refused(arguments(workshop, *recipes), workshop, capsys)
    assert "recipe 'guarded': architecture 'dncnn'" in error
    assert "does not work on images of shape (3, 16, 16)" in error


def test_backbone_with_too_few_classes_is_refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(dataclasses.replace(TINY, arguments={**TINY.arguments, "num_classes": 2}), workshop / "out")
    error = refused(arguments(workshop, "guarded.toml"), workshop, capsys)
    assert "returns (2,) for an image, and labels go up to 2" in error


def test_corrupted_backbone_is_refused(workshop: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "tiny.safetensors").write_bytes(b"exchanged")
    assert "is corrupted or was exchanged" in refused(arguments(workshop, "guarded.toml"), workshop, capsys)
