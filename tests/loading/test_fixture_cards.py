"""The trained fixtures: complete, loadable, accurate, and with the measured numbers in their cards."""

from __future__ import annotations

import pytest
import torch

from pytest_gradmask import load_model
from pytest_gradmask.loading.checkpoints import available, load_card
from pytest_gradmask.loading.models.composites import Composite, RandomizedEnsemble
from pytest_gradmask.training.recipes import load_recipe
from tests.training.training_toys import FIXTURES

COMPOSED = [
    f"{architecture}-{kind}" for architecture in ("resnet", "vgg", "vit") for kind in ("standard", "adversarial")
]
BACKBONES = [*COMPOSED, "vgg-mildly-adversarial"]
COMPOSITES = [
    *(f"{backbone}-composite" for backbone in COMPOSED),
    "resnet-standard-composite-b",
    "resnet-standard-composite-c",
]
ENSEMBLES = ["adversarial-ensemble", "standard-ensemble", "uniform-ensemble"]


def test_there_are_no_other_files() -> None:
    front_ends = [f"{composite}-front-end" for composite in COMPOSITES]
    assert available() == sorted([*BACKBONES, *COMPOSITES, *front_ends, *ENSEMBLES])
    # The warm-up of a backbone is not shipped, only its recipe.
    assert sorted(file.stem for file in FIXTURES.glob("*.toml")) == sorted([*BACKBONES, *COMPOSITES, "resnet-warm"])
    assert sorted(file.stem for file in FIXTURES.glob("*.safetensors")) == sorted([*BACKBONES, *front_ends])


@pytest.mark.parametrize("name", [*BACKBONES, *COMPOSITES, *ENSEMBLES])
def test_model_classifies_images(name: str) -> None:
    model = load_model(name)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", [*BACKBONES, *COMPOSITES])
def test_weights_are_those_of_the_recipe_beside_them(name: str) -> None:
    recipe = load_recipe(FIXTURES / f"{name}.toml")
    card = load_card(f"{name}-front-end" if recipe.backbone else name)
    assert (card["architecture"], card["arguments"]) == (recipe.architecture, recipe.arguments)
    # Older cards lack newer fields, which then have their defaults.
    for key, value in card["recipe"].items():
        assert value == getattr(recipe, key), key


def measured(name: str) -> str:
    """The row of the table in fixtures/README.md, from the card."""
    found = load_card(name)["measured"]
    low, high = found["clean_bounds_99"]
    bpda = f"{found['bpda20_accuracy']:.1%}" if "bpda20_accuracy" in found else ""
    clean = f"{found['clean_accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"| `{name}` | {clean} | {found['pgd20_accuracy']:.1%} | {bpda} |".replace("%", " %").replace("|  |", "| |")


@pytest.mark.parametrize("name", [*BACKBONES, *COMPOSITES])
def test_readme_has_the_measured_numbers(name: str) -> None:
    assert measured(name) in (FIXTURES / "README.md").read_text().splitlines()


@pytest.mark.parametrize(("name", "least"), [("resnet-standard", 0.88), ("vgg-standard", 0.88), ("vit-standard", 0.75)])
def test_standard_backbones_classify_well(name: str, least: float) -> None:
    assert load_card(name)["measured"]["clean_accuracy"] >= least


@pytest.mark.parametrize("name", COMPOSITES)
def test_front_ends_keep_clean_accuracy(name: str) -> None:
    card = load_card(name)
    backbone = load_card(card["backbone"])["measured"]["clean_accuracy"]
    assert card["measured"]["clean_accuracy"] >= backbone - 0.05


@pytest.mark.parametrize(
    ("name", "backbones"), [("adversarial-ensemble", 3), ("standard-ensemble", 3), ("uniform-ensemble", 1)]
)
def test_ensembles_have_their_front_ends_and_backbones(name: str, backbones: int) -> None:
    model = load_model(name)
    assert isinstance(model, RandomizedEnsemble)
    assert all(isinstance(member, Composite) for member in model.members)
    members = load_card(name)["members"]
    assert len({load_card(member)["front_end"] for member in members}) == 3
    assert len({load_card(member)["backbone"] for member in members}) == backbones
