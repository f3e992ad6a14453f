"""Classifiers of timm with weights from a local file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pytest_gradmask import load_model
from pytest_gradmask.errors import CheckpointError, InputError
from tests.toys import Boom, draw

#: The smallest model of timm, made for its own tests.
NAME = "test_efficientnet.r160_in1k"


def loaded(file: Path) -> nn.Module:
    return load_model(f"timm:{NAME}@{file}")


def drawn(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(NAME, pretrained=False)
        return model.eval()


def state(seed: int = 0) -> dict[str, Tensor]:
    """Weights with other batch norm statistics than a fresh model has."""
    found = drawn(seed).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            key: value + 0.1 * torch.rand_like(value) if value.is_floating_point() else value
            for key, value in found.items()
        }


def expected(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits of timm's model on images that are normalised by hand."""
    model = drawn()
    model.load_state_dict(weights)
    config: Any = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert mean.any()
    with torch.no_grad():
        logits: Tensor = model((images - mean) / std)
    return logits


@pytest.mark.parametrize(("suffix", "names"), [("pth", "timm's"), ("pth", "others"), ("safetensors", "timm's")])
def test_weights_are_loaded_and_images_normalised(suffix: str, names: str, tmp_path: Path) -> None:
    weights, images, file = state(), draw(2, 3, 64, 64), tmp_path / f"weights.{suffix}"
    stored = {f"their {key}": value for key, value in weights.items()} if names == "others" else weights
    if suffix == "pth":
        torch.save(stored, file)
    else:
        save_file(stored, file)
    model = loaded(file)
    assert not model.training
    with torch.no_grad():
        found = model(images)
    torch.testing.assert_close(found, expected(weights, images))
    assert not torch.allclose(found, expected(state(seed=1), images))


def test_safetensors_with_other_names_are_refused(tmp_path: Path) -> None:
    """The format sorts its tensors, so they cannot be matched by order."""
    save_file({f"their {key}": value for key, value in state().items()}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=f"do not fit {NAME}"):
        loaded(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["test_eficientnet", "test_efficientnet.r161_in1k"], ids=["name", "weights"])
@pytest.mark.parametrize("file", ["", "@weights.pth"], ids=["pretrained", "file"])
def test_unknown_model_is_refused(name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "weights.pth")
    with pytest.raises(InputError, match=r"timm has no such model; similar ones: .*test_efficientnet"):
        load_model(f"timm:{name}{file}")


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*absent.pth"):
        loaded(tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_file_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        loaded(file)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"layer": Boom()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        loaded(tmp_path / "weights.pth")
    assert not Boom.opened
    with (tmp_path / "weights.pth").open("wb") as file:
        pickle.dump(Boom(), file)
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        loaded(tmp_path / "weights.pth")
    assert not Boom.opened


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3, "layer": torch.ones(2)}], ids=["list", "run"])
def test_file_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        loaded(tmp_path / "weights.pth")


@pytest.mark.parametrize("change", ["missing", "surplus", "reshaped", "reshaped under timm's names"])
def test_weights_of_another_model_are_refused(change: str, tmp_path: Path) -> None:
    weights = state()
    last = list(weights)[-1]
    if change == "missing":
        del weights[last]
    elif change == "surplus":
        weights["more"] = torch.ones(2)
    else:
        weights[last] = torch.ones(7)
        if change == "reshaped":
            weights = {f"their {key}": value for key, value in weights.items()}
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"do not fit {NAME}"):
        loaded(tmp_path / "weights.pth")
