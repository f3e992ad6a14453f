from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models import ARCHITECTURES, build_model
from pytest_gradmask.loading.models.backbones import CIFAR10_MEAN, CIFAR10_STD, Normalize, resnet, vgg
from pytest_gradmask.loading.models.composites import Composite, Mixture, RandomizedEnsemble
from pytest_gradmask.loading.models.front_ends import DnCNN
from tests.toys import Constant, draw, linear

# backbones


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet", {"channels": [4, 8, 8, 8]}),
        ("resnet", {"channels": [64, 8, 8, 8]}),
        ("resnet", {"layers": [2, 1, 1, 1], "channels": [4, 4, 4, 4]}),
        ("vgg", {"layout": [4, "M", 8, 8, "M", 8]}),
    ],
    ids=["resnet", "resnet with the stem of timm", "resnet of two blocks", "vgg"],
)
def test_backbones_return_ten_logits_per_image(architecture: str, arguments: dict[str, object]) -> None:
    model = build_model(architecture, arguments).eval()
    assert model(draw(2, 3, 32, 32)).shape == (2, 10)
    assert build_model(architecture, {**arguments, "num_classes": 7}).eval()(draw(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("build", [lambda: resnet(channels=(4, 4, 4, 4)), lambda: vgg(layout=(4, "M", 4))])
def test_backbones_are_differentiable_without_batch_dependence(build: type[nn.Module]) -> None:
    model, images = build().eval(), draw(3, 3, 32, 32).requires_grad_(True)
    logits = model(images)
    torch.testing.assert_close(model(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[0].sum(), images)
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


def test_vgg_has_no_large_hidden_layers() -> None:
    assert sum(parameter.numel() for parameter in vgg().parameters()) < 1_000_000


def test_normalize_is_not_in_the_weights() -> None:
    normalize = Normalize(CIFAR10_MEAN, CIFAR10_STD)
    pixels = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1) + torch.tensor(CIFAR10_STD).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(pixels), torch.ones(1, 3, 1, 1))
    assert not normalize.state_dict()
    assert isinstance(vgg(layout=(4, "M", 4))[0], Normalize)


def test_every_architecture_has_usable_defaults() -> None:
    assert sorted(ARCHITECTURES) == ["dncnn", "resnet", "vgg", "vit"]
    for architecture in ARCHITECTURES:
        assert isinstance(build_model(architecture), nn.Module)


def test_unknown_architecture_and_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="'lenet': unknown; use one of dncnn, resnet, vgg, vit"):
        build_model("lenet")
    with pytest.raises(InputError, match=r"'vgg': cannot be built with {'depth': 3}"):
        build_model("vgg", {"depth": 3})


# composites


def test_composite_is_backbone_of_front_end() -> None:
    front_end, backbone, images = DnCNN(3, 2).eval(), linear(), draw(4, 3, 8, 8)
    torch.testing.assert_close(Composite(front_end, backbone)(images), backbone(front_end(images)))


def test_randomized_ensemble_picks_every_member_about_as_often() -> None:
    ensemble, images = RandomizedEnsemble([Constant(float(number)) for number in range(4)]), draw(3, 3, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answers = [ensemble(images).flatten() for _ in range(400)]
    assert all(len(set(answer.tolist())) == 1 for answer in answers)  # one member answers the whole batch
    counts = torch.stack(answers)[:, 0].int().bincount(minlength=4)
    assert counts.min() > 70  # 100 expected, 8.7 standard deviation


def test_randomized_ensemble_draws_from_the_global_generator() -> None:
    ensemble, images = RandomizedEnsemble([Constant(0.0), Constant(1.0)]), draw(1, 3, 2, 2)

    def answers() -> list[float]:
        torch.manual_seed(3)
        return [ensemble(images).item() for _ in range(20)]

    with torch.random.fork_rng(devices=[]):
        assert answers() == answers()


@pytest.mark.parametrize("count", [0, 1])
def test_randomized_ensemble_needs_two_members(count: int) -> None:
    with pytest.raises(InputError, match=f"at least 2, got {count}"):
        RandomizedEnsemble([Constant(0.0)] * count)


def test_mixture_is_the_logarithm_of_the_mean_softmax() -> None:
    members, images = [linear(seed=seed) for seed in range(3)], draw(5, 3, 8, 8)
    expected = torch.stack([member(images).softmax(1) for member in members]).mean(0).log()
    torch.testing.assert_close(Mixture(members)(images), expected)
    torch.testing.assert_close(Mixture(members)(images).exp().sum(1), torch.ones(5))


def test_mixture_does_not_overflow_or_lose_its_gradient() -> None:
    mixture = Mixture([Constant(1000.0, 0.0), Constant(0.0, -1000.0)])
    torch.testing.assert_close(mixture(draw(1, 3, 2, 2)), torch.tensor([[0.0, -1000.0]]))
    images = draw(2, 3, 8, 8).requires_grad_(True)
    (gradient,) = torch.autograd.grad(Mixture([linear(seed=0), linear(seed=1)])(images)[:, 0].sum(), images)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
