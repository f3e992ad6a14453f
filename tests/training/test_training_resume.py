"""Resuming a killed run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_gradmask.errors import CheckpointError
from pytest_gradmask.training.loop import initialised, train
from pytest_gradmask.training.recipes import Recipe
from pytest_gradmask.training.state import load_state
from tests.toys import Boom
from tests.training.training_toys import (
    DATA,
    GUARDED,
    TINY,
    KilledError,
    identical,
    kill_after,
    separable,
    weights,
)

RECIPES = {
    "clean": dataclasses.replace(TINY, label_smoothing=0.1),
    "adversarial": dataclasses.replace(TINY, eps=8 / 255, label_smoothing=0.1),
    "constant": dataclasses.replace(TINY, schedule="constant"),
    "adamw": dataclasses.replace(TINY, optimizer="adamw", learning_rate=0.01),
    "adamw, constant": dataclasses.replace(TINY, optimizer="adamw", schedule="constant", learning_rate=0.01),
    "front end": dataclasses.replace(GUARDED, optimizer="sgd", schedule="one-cycle"),
    "front end, adversarial": dataclasses.replace(GUARDED, eps=8 / 255, attack_steps=2, attack_step_size=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("calls", [1, 7])
def test_killed_run_ends_as_if_undisturbed(
    calls: int, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, backbone = tmp_path / "tiny.state", initialised(TINY) if recipe.backbone else None
    undisturbed = weights(train(recipe, DATA, backbone=backbone))
    with monkeypatch.context() as patch:
        kill_after(calls, patch)
        with pytest.raises(KilledError):
            train(recipe, DATA, backbone=backbone, state_file=file)
    state = load_state(file, recipe, len(DATA))
    assert state is not None
    assert state["step"] == calls
    assert identical(weights(train(recipe, DATA, backbone=backbone, state_file=file)), undisturbed)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.state"]


def test_state_has_the_front_end_without_backbone(tmp_path: Path) -> None:
    front_end = train(GUARDED, DATA, backbone=initialised(TINY), state_file=tmp_path / "guarded.state")
    state = load_state(tmp_path / "guarded.state", GUARDED, len(DATA))
    assert state is not None
    assert identical(state["model"], weights(front_end))


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


def test_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.state"
    train(TINY, DATA, state_file=file)
    state = torch.load(file, weights_only=True)
    state["model"].popitem()
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="does not fit recipe 'tiny'"):
        train(TINY, DATA, state_file=file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.2}, r"\(learning_rate is 0\.1 there and 0\.2 here\)"),
        ({"seed": 4}, r"\(seed is 0 there and 4 here\)"),
        ({"optimizer": "adamw"}, r"\(optimizer is 'sgd' there and 'adamw' here\)"),
        ({"schedule": "constant"}, r"\(schedule is 'one-cycle' there and 'constant' here\)"),
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


def test_pickle_in_a_state_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": Boom(), "optimizer": {}, "scheduler": {}, "step": 0}, tmp_path / "tiny.state")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path / "tiny.state", TINY, len(DATA))
    assert not Boom.opened
