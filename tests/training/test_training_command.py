"""The command that trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_gradmask.loading.checkpoints import load_card, load_checkpoint
from pytest_gradmask.loading.datasets import Dataset
from pytest_gradmask.training import __main__ as command
from pytest_gradmask.training import loop
from pytest_gradmask.training.loop import train
from tests.training.training_toys import (
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
    assert card["calibration"] is None
    measured = card["measured"]
    assert measured["data"] == {"kind": "npz", "name": "data.npz", "images": 24}
    assert (measured["images"], measured["pgd_images"]) == (24, 24)
    assert measured["pgd20_accuracy"] <= measured["clean_accuracy"]
    low, high = measured["clean_bounds_99"]
    assert low < measured["clean_accuracy"] <= high
    model, test = load_checkpoint("tiny", workshop / "out"), separable(24, seed=1)
    with torch.no_grad():
        accuracy = (model((test.images * 255).round() / 255).argmax(1) == test.labels).float().mean().item()
    assert measured["clean_accuracy"] == pytest.approx(accuracy)


def test_command_saves_what_the_recipe_trains(workshop: Path) -> None:
    assert command.main(arguments(workshop)) == 0
    data = separable(48)
    rounded = Dataset((data.images * 255).round() / 255, data.labels, "rounded")
    assert identical(weights(load_checkpoint("tiny", workshop / "out")), weights(train(TINY, rounded)))


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
    assert identical(
        weights(load_checkpoint("second", workshop / "out")), weights(load_checkpoint("second", workshop / "out2"))
    )


def test_command_writes_to_the_fixtures_by_default(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gradmask.training.provenance.fixtures_directory", lambda: workshop / "fixtures")
    command_line = arguments(workshop)
    del command_line[command_line.index("--output") : command_line.index("--output") + 2]
    assert command.main(command_line) == 0
    assert (workshop / "fixtures" / "tiny.safetensors").is_file()


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
        ('"vgg"\narguments', '"vit"\n#', "does not work on images of shape (3, 16, 16)"),
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
    command_line = arguments(workshop, **{option: str(workshop / "tiny.toml")})
    assert "is a file; name a directory" in refused(command_line, workshop, capsys)


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
    "command_line",
    [[], ["a.toml"], ["a.toml", "--data", "x"], ["a.toml", "--data", "x", "--test", "y", "--device", "tpu"]],
    ids=["nothing", "no data", "no test", "unknown device"],
)
def test_command_line_errors_exit_with_2(command_line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(command_line)
    assert caught.value.code == 2
    assert "usage: python -m pytest_gradmask.training" in capsys.readouterr().err


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "imagefolder:DIR" in text
    assert "Exit status" in text
    assert "--output" in text
