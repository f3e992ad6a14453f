from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.errors import CheckpointError, GradmaskError
from pytest_gradmask.loading import checkpoints
from pytest_gradmask.loading.checkpoints import (
    available,
    fixtures_directory,
    load_card,
    load_checkpoint,
    save_card,
    save_model,
)
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.composites import Composite, RandomizedEnsemble
from tests.toys import Boom, draw

VGG: dict[str, Any] = {"architecture": "vgg", "arguments": {"layout": [4, "M", 4], "num_classes": 3}}
DNCNN: dict[str, Any] = {"architecture": "dncnn", "arguments": {"depth": 3, "width": 2}}


def built(card: dict[str, Any], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(card["architecture"], card["arguments"]).eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A directory with two backbones and a front end."""
    save_model("backbone", built(VGG), VGG, tmp_path)
    save_model("other", built(VGG, seed=1), VGG, tmp_path)
    save_model("front", built(DNCNN), DNCNN, tmp_path)
    return tmp_path


# one model


def test_round_trip(tmp_path: Path) -> None:
    model = built(VGG)
    file = save_model("tiny-1", model, {**VGG, "note": "kept"}, tmp_path / "new" / "folder")
    assert file == tmp_path / "new" / "folder" / "tiny-1.safetensors"
    loaded = load_checkpoint("tiny-1", file.parent)
    assert same(loaded, model)
    assert not loaded.training
    assert load_card("tiny-1", file.parent)["note"] == "kept"
    assert sorted(path.name for path in file.parent.iterdir()) == ["tiny-1.json", "tiny-1.safetensors"]


def test_round_trip_of_channels_last_weights(tmp_path: Path) -> None:
    model = built(VGG)
    model.to(memory_format=torch.channels_last)
    save_model("tiny", model, VGG, tmp_path)
    assert same(load_checkpoint("tiny", tmp_path), model)


def test_saving_does_not_change_the_callers_card(tmp_path: Path) -> None:
    card = dict(VGG)
    save_model("tiny", built(VGG), card, tmp_path)
    assert card == VGG


def test_loaded_models_are_independent(zoo: Path) -> None:
    first, second = load_checkpoint("backbone", zoo), load_checkpoint("backbone", zoo)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert not same(first, second)


@pytest.mark.parametrize("position", [0, 200, -1], ids=["header", "middle", "end"])
def test_flipped_byte_is_noticed(zoo: Path, position: int) -> None:
    file = zoo / "backbone.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'backbone'.* is corrupted or was exchanged: its sha256 is") as caught:
        load_checkpoint("backbone", zoo)
    assert str(file) in str(caught.value)


def test_exchanged_weights_are_noticed(zoo: Path) -> None:
    (zoo / "other.safetensors").replace(zoo / "backbone.safetensors")
    with pytest.raises(CheckpointError, match="corrupted or was exchanged"):
        load_checkpoint("backbone", zoo)


def test_card_without_hash_is_refused(zoo: Path) -> None:
    save_card("backbone", VGG, zoo)
    with pytest.raises(CheckpointError, match="its card says None"):
        load_checkpoint("backbone", zoo)


@pytest.mark.parametrize("name", ["backbone", "both"])
def test_every_flipped_bit_of_a_card_is_noticed(zoo: Path, name: str) -> None:
    save_card("both", {"architecture": "composite", "front_end": "front", "backbone": "backbone"}, zoo)
    file = zoo / f"{name}.json"
    content = file.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            file.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            with pytest.raises(CheckpointError, match=f"checkpoint '{name}'"):
                load_card(name, zoo)


def test_handwritten_card_error_names_save_card(zoo: Path) -> None:
    card = {"architecture": "composite", "front_end": "front", "backbone": "backbone"}
    (zoo / "both.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"both\.json is corrupted or was changed.*save_card"):
        load_checkpoint("both", zoo)


def test_missing_weights_are_named(zoo: Path) -> None:
    (zoo / "backbone.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights .*backbone\.safetensors cannot be read"):
        load_checkpoint("backbone", zoo)


def test_weights_that_do_not_fit_are_refused(zoo: Path) -> None:
    card = load_card("backbone", zoo)
    save_card("backbone", {**card, "arguments": {"layout": [5, "M", 4], "num_classes": 3}}, zoo)
    with pytest.raises(CheckpointError, match="does not fit vgg"):
        load_checkpoint("backbone", zoo)


def test_weights_of_another_architecture_are_refused(zoo: Path) -> None:
    save_card("backbone", {**load_card("backbone", zoo), **DNCNN}, zoo)
    with pytest.raises(CheckpointError, match="does not fit dncnn"):
        load_checkpoint("backbone", zoo)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_pickle_in_disguise_is_not_executed(tmp_path: Path, form: str) -> None:
    file = tmp_path / "evil.safetensors"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Boom()))
    else:
        torch.save(Boom(), file)
    # An attacker can also replace the hash. The hash protects against accidents, the file format against attackers.
    save_card("evil", {**VGG, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}, tmp_path)
    with pytest.raises(CheckpointError, match="does not fit vgg"):
        load_checkpoint("evil", tmp_path)
    assert not Boom.opened


# cards


def test_missing_card_error_lists_the_others(zoo: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'absent': no card .*; there are backbone, front, other$"):
        load_card("absent", zoo)


def test_a_typing_error_gets_the_nearest_name_alone(zoo: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'backbon': no card .*; did you mean backbone\?$") as caught:
        load_card("backbon", zoo)
    assert caught.value.__cause__ is None


def test_missing_card_in_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there are none"):
        load_checkpoint("absent", tmp_path)


@pytest.mark.parametrize("card", [{"sha256": "0"}, [], "vgg", None], ids=["object", "list", "string", "null"])
def test_card_without_architecture_is_refused(tmp_path: Path, card: object) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="names no architecture"):
        load_checkpoint("bad", tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"], ids=["cut off", "empty", "no text"])
def test_unreadable_card_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"card .*bad\.json cannot be read"):
        load_card("bad", tmp_path)


def test_unknown_architecture_is_refused(zoo: Path) -> None:
    save_card("backbone", {**load_card("backbone", zoo), "architecture": "alexnet"}, zoo)
    with pytest.raises(GradmaskError, match="'alexnet': unknown; use one of dncnn, resnet, vgg, vit"):
        load_checkpoint("backbone", zoo)


def test_unknown_architecture_arguments_are_refused(zoo: Path) -> None:
    save_card("backbone", {**load_card("backbone", zoo), "arguments": {"colour": "red"}}, zoo)
    with pytest.raises(GradmaskError, match=r"cannot be built with {'colour': 'red'}"):
        load_checkpoint("backbone", zoo)


NAMES = ["../x", "..", "a/b", "/etc/passwd", "a\\b", "", "A", "a.b", "-a", "a\n", "a\0", "a_b", "ä"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_could_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    save_card("x", VGG, tmp_path)
    with pytest.raises(CheckpointError, match="lower-case letters, digits and dashes only"):
        load_checkpoint(name, inside)
    with pytest.raises(CheckpointError, match="lower-case letters, digits and dashes only"):
        save_model(name, nn.Identity(), VGG, inside)
    with pytest.raises(CheckpointError, match="lower-case letters, digits and dashes only"):
        save_card(name, VGG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_available_lists_cards_in_order(zoo: Path) -> None:
    assert available(zoo) == ["backbone", "front", "other"]


def test_fixtures_of_the_package_are_the_default() -> None:
    assert (fixtures_directory() / "cifar10-embedded.npz").is_file()
    with pytest.raises(CheckpointError, match="no card") as caught:
        load_card("no-such-checkpoint")
    assert str(fixtures_directory()) in str(caught.value)


# composites and ensembles


def test_composite_card(zoo: Path) -> None:
    save_card("both", {"architecture": "composite", "front_end": "front", "backbone": "backbone"}, zoo)
    model, images = load_checkpoint("both", zoo), draw(2, 3, 16, 16)
    assert isinstance(model, Composite)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(images), load_checkpoint("backbone", zoo)(load_checkpoint("front", zoo)(images)))


def test_saved_card_is_the_model_of_its_parts(zoo: Path) -> None:
    card = {"architecture": "composite", "front_end": "front", "backbone": "backbone", "measured": {"images": 3}}
    before = {file.name for file in zoo.iterdir()}
    assert save_card("both", card, zoo) == zoo / "both.json"
    assert {file.name for file in zoo.iterdir()} == {*before, "both.json"}
    assert load_card("both", zoo) == card
    assert isinstance(load_checkpoint("both", zoo), Composite)


@pytest.fixture
def shop(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory. The fixtures of the package are those of the zoo and a composite of them."""
    monkeypatch.setattr(checkpoints, "fixtures_directory", lambda: zoo)
    save_card("both", {"architecture": "composite", "front_end": "front", "backbone": "backbone"}, zoo)
    folder = zoo / "shop"
    folder.mkdir()
    return folder


def test_part_from_the_fixtures_of_the_package(shop: Path) -> None:
    save_model("mine", built(DNCNN, seed=1), DNCNN, shop)
    save_card("whole", {"architecture": "composite", "front_end": "mine", "backbone": "backbone"}, shop)
    save_card("ensemble", {"architecture": "ensemble", "members": ["whole", "both"]}, shop)
    whole, ensemble = load_checkpoint("whole", shop), load_checkpoint("ensemble", shop)
    assert same(whole, Composite(built(DNCNN, seed=1), load_checkpoint("backbone")))
    assert same(ensemble, RandomizedEnsemble([whole, load_checkpoint("both")]))


def test_part_in_the_same_folder_comes_first(shop: Path) -> None:
    save_model("backbone", built(VGG, seed=2), VGG, shop)
    save_card("whole", {"architecture": "composite", "front_end": "front", "backbone": "backbone"}, shop)
    save_card("ensemble", {"architecture": "ensemble", "members": ["whole", "both"]}, shop)
    mine = load_checkpoint("whole", shop)
    assert same(mine, Composite(load_checkpoint("front"), built(VGG, seed=2)))
    # Composites of the package have parts of the package, even if the folder of an ensemble has parts of that name.
    assert same(load_checkpoint("ensemble", shop), RandomizedEnsemble([mine, load_checkpoint("both")]))


@pytest.mark.parametrize("part", ["absent", "a" * 300], ids=["absent", "longer than a file name"])
def test_missing_part_is_named(shop: Path, part: str) -> None:
    save_card("whole", {"architecture": "composite", "front_end": part, "backbone": "backbone"}, shop)
    with pytest.raises(CheckpointError, match=f"'{part}'"):
        load_checkpoint("whole", shop)


def test_ensemble_card(zoo: Path) -> None:
    save_card("both", {"architecture": "composite", "front_end": "front", "backbone": "backbone"}, zoo)
    save_card("ensemble", {"architecture": "ensemble", "members": ["both", "other"]}, zoo)
    model = load_checkpoint("ensemble", zoo)
    assert isinstance(model, RandomizedEnsemble)
    assert [type(member) for member in model.members] == [Composite, nn.Sequential]
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "card",
    [
        {"architecture": "composite", "front_end": "../front", "backbone": "backbone"},
        {"architecture": "composite", "front_end": "front", "backbone": "absent"},
        {"architecture": "ensemble", "members": ["backbone", "absent"]},
    ],
    ids=["path", "backbone missing", "member missing"],
)
def test_parts_are_checked_like_any_checkpoint(zoo: Path, card: dict[str, Any]) -> None:
    save_card("whole", card, zoo)
    with pytest.raises(CheckpointError):
        load_checkpoint("whole", zoo)


def test_ensemble_of_one_is_refused(zoo: Path) -> None:
    save_card("whole", {"architecture": "ensemble", "members": ["backbone"]}, zoo)
    with pytest.raises(GradmaskError, match="needs at least 2, got 1"):
        load_checkpoint("whole", zoo)


@pytest.mark.parametrize(
    "card",
    [
        {"architecture": "composite", "front_end": "front"},
        {"architecture": "ensemble"},
        {"architecture": "ensemble", "members": ["whole", "backbone"]},
        {"architecture": "composite", "front_end": 3, "backbone": "backbone"},
    ],
    ids=["no backbone", "no members", "member of itself", "no name"],
)
def test_malformed_composites_are_refused(zoo: Path, card: dict[str, Any]) -> None:
    save_card("whole", card, zoo)
    with pytest.raises(CheckpointError, match="'whole'"):
        load_checkpoint("whole", zoo)
