"""The vision transformer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.checkpoints import load_checkpoint, save_model
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.backbones import CIFAR10_MEAN, CIFAR10_STD, vit
from pytest_gradmask.training.loop import initialised, train
from tests.toys import draw
from tests.training.training_toys import DATA, TINY, identical, weights

SMALL: dict[str, Any] = {"embed_dim": 8, "depth": 1, "num_heads": 2, "image_size": 16}
RECIPE = dataclasses.replace(
    TINY,
    architecture="vit",
    arguments={**SMALL, "num_classes": 3},
    optimizer="adamw",
    learning_rate=0.01,
    weight_decay=0.05,
    epochs=8,
)


def small(**more: Any) -> nn.Sequential:
    """A tiny transformer with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return vit(**{**SMALL, **more}).eval()


@pytest.mark.parametrize("classes", [10, 7])
def test_vit_returns_one_logit_per_class(classes: int) -> None:
    assert small(num_classes=classes)(draw(2, 3, 16, 16)).shape == (2, classes)


def test_vit_returns_ten_logits_by_default() -> None:
    assert vit().eval()(draw(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(("size", "tokens"), [(16, 16), (24, 36)])
def test_stem_makes_one_token_per_4x4_pixels(size: int, tokens: int) -> None:
    model = small(image_size=size, embed_dim=12)
    seen: list[torch.Size] = []
    blocks = model.get_submodule("1.blocks")
    blocks.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape))
    model(draw(2, 3, size, size))
    assert seen == [(2, tokens, 12)]  # no class token
    stem = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [(layer.in_channels, layer.out_channels, layer.stride[0]) for layer in stem] == [
        (3, 3, 2),
        (3, 6, 2),
        (6, 12, 1),
    ]


@pytest.mark.parametrize("depth", [1, 3])
def test_vit_has_the_asked_depth_and_width(depth: int) -> None:
    model = small(depth=depth, mlp_ratio=3.0)
    assert len(list(model.get_submodule("1.blocks").children())) == depth
    assert model.get_parameter(f"1.blocks.{depth - 1}.mlp.fc1.weight").shape == (24, 8)


def test_vit_normalises_inside() -> None:
    images = draw(2, 3, 16, 16)
    mean, std = torch.tensor(CIFAR10_MEAN).view(3, 1, 1), torch.tensor(CIFAR10_STD).view(3, 1, 1)
    plain = small(mean=(0, 0, 0), std=(1, 1, 1))
    assert identical(weights(plain), weights(small()))
    torch.testing.assert_close(small()(images), plain((images - mean) / std))
    assert not torch.allclose(small()(images), plain(images))


def test_vit_gradient_reaches_its_whole_image_only() -> None:
    images = draw(3, 3, 16, 16).requires_grad_(True)
    model = small()
    logits = model(images)
    torch.testing.assert_close(model(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[0, 0], images)
    parts = nn.functional.avg_pool2d(gradient.abs(), 4)
    assert (parts[0] > 0).all()
    assert not gradient[1:].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"embed_dim": 10, "num_heads": 3},
        {"embed_dim": 2, "num_heads": 2},
        {"embed_dim": 0},
        {"embed_dim": -8},
        {"num_heads": 0},
        {"num_heads": -2},
        {"image_size": 18},
        {"image_size": 0},
        {"image_size": -4},
    ],
    ids=str,
)
def test_impossible_vit_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError) as caught:
        build_model("vit", {**SMALL, **arguments})
    for key, value in arguments.items():
        assert f"{key}={value}" in str(caught.value)
    assert "embed_dim must be at least 4 and a multiple of num_heads, and image_size a multiple of 4" in str(
        caught.value
    )


def test_vit_is_saved_and_loaded(tmp_path: Path) -> None:
    model, images = small(), draw(2, 3, 16, 16)
    save_model("small", model, {"architecture": "vit", "arguments": SMALL}, tmp_path)
    torch.testing.assert_close(load_checkpoint("small", tmp_path)(images), model(images))


@pytest.mark.parametrize("recalibrate", [False, True])
def test_vit_learns(recalibrate: bool) -> None:
    model = train(dataclasses.replace(RECIPE, recalibrate=recalibrate), DATA)
    with torch.no_grad():
        before, after = (
            nn.functional.cross_entropy(each.eval()(DATA.images), DATA.labels) for each in (initialised(RECIPE), model)
        )
    assert after < before - 0.2
