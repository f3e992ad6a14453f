"""Recipes: valid and invalid files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from torch import nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.training.loop import initialised
from pytest_gradmask.training.recipes import load_recipe
from tests.training.training_toys import FIXTURES, GUARDED, GUARDED_TOML, TINY, TOML

# recipes


def test_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOML)
    (tmp_path / "guarded.toml").write_text(GUARDED_TOML)
    assert load_recipe(tmp_path / "tiny.toml") == TINY
    assert load_recipe(tmp_path / "guarded.toml") == GUARDED


def test_recipe_defaults_to_sgd_and_one_cycle() -> None:
    assert (TINY.optimizer, TINY.schedule, TINY.backbone, TINY.residual_std) == ("sgd", "one-cycle", "", 0.0)


SHIPPED = {"-".join(file.relative_to(FIXTURES).with_suffix("").parts): file for file in FIXTURES.rglob("*.toml")}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_recipes_of_the_fixtures_are_valid(name: str) -> None:
    recipe = load_recipe(SHIPPED[name])
    assert recipe.name == name
    assert isinstance(initialised(recipe), nn.Module)
    assert {recipe.initial, recipe.backbone} - {""} <= SHIPPED.keys()


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
        ("optimizer", "adam"),
        ("optimizer", ""),
        ("schedule", "cosine"),
        ("schedule", None),
        ("backbone", "../tiny"),
        ("backbone", None),
        ("residual_std", -0.02),
        ("residual_std", 1.5),
        ("residual_std", float("nan")),
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


def test_calibration_is_for_front_ends_only() -> None:
    with pytest.raises(InputError, match=r"residual_std=0\.02: is for front ends only; name the backbone of one"):
        dataclasses.replace(GUARDED, backbone="")


@pytest.mark.parametrize("backbone", ["guarded", "guarded-front-end"])
def test_backbone_that_would_be_overwritten_is_refused(backbone: str) -> None:
    with pytest.raises(InputError, match=rf"backbone='{backbone}': would be overwritten by what 'guarded' makes"):
        dataclasses.replace(GUARDED, backbone=backbone)


def test_integers_are_numbers_to_a_recipe() -> None:
    assert dataclasses.replace(TINY, epochs=2, weight_decay=0, eps=1).epochs == 2
