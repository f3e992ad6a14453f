"""Front ends: their options, and how they are calibrated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.front_ends import DnCNN, calibrate, calibrated_front_end
from tests.toys import draw


def test_dncnn_adds_its_residual() -> None:
    front_end, images = DnCNN(depth=4, width=3).eval(), draw(2, 3, 8, 8)
    torch.testing.assert_close(front_end(images), images + front_end.residual(images))


@pytest.mark.parametrize(("depth", "channels"), [(3, 3), (5, 1)])
def test_dncnn_has_the_asked_depth(depth: int, channels: int) -> None:
    front_end = DnCNN(depth=depth, width=4, channels=channels)
    assert sum(isinstance(module, nn.Conv2d) for module in front_end.modules()) == depth
    assert sum(isinstance(module, nn.BatchNorm2d) for module in front_end.modules()) == depth - 2
    assert front_end(draw(2, channels, 9, 7)).shape == (2, channels, 9, 7)


@pytest.mark.parametrize("arguments", [{"depth": 2}, {"width": 0}])
def test_impossible_dncnn_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a depth of at least 3 and a width of at least 1"):
        DnCNN(**arguments)


def inner(front_end: DnCNN) -> list[nn.Conv2d]:
    """The convolutions between the first and the last."""
    return [module for module in front_end.residual if isinstance(module, nn.Conv2d)][1:-1]


def test_dncnn_without_norm_has_biases_instead() -> None:
    plain, normed = DnCNN(depth=5, width=4, norm=False), DnCNN(depth=5, width=4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    for layer in inner(plain):
        assert layer.bias is not None
        assert not layer.bias.any()
    assert all(layer.bias is None for layer in inner(normed))
    assert len(inner(plain)) == len(inner(normed)) == 3


def test_dncnn_without_norm_has_no_batch_dependence() -> None:
    front_end, images = DnCNN(depth=4, width=4, norm=False).train(), draw(3, 3, 8, 8)
    torch.testing.assert_close(front_end(images[:1]), front_end(images)[:1])


def test_dncnn_without_skip_is_its_residual() -> None:
    front_end, images = DnCNN(depth=4, width=3, skip=False).eval(), draw(2, 3, 8, 8)
    torch.testing.assert_close(front_end(images), front_end.residual(images))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("options", [{}, {"norm": False}, {"bound": 0.1}], ids=["plain", "no norm", "bound"])
def test_zero_init_is_the_identity_and_can_learn(options: dict[str, Any], training: bool) -> None:
    front_end = DnCNN(depth=4, width=4, zero_init=True, **options).train(training)
    images = draw(2, 3, 8, 8)
    output = front_end(images)
    assert torch.equal(output, images)
    (output * images).sum().backward()
    last = front_end.residual[-1].weight
    assert isinstance(last.grad, Tensor)
    assert last.grad.abs().sum() > 0


def test_start_at_zero_changes_the_last_convolution_only() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        usual = DnCNN(depth=4, width=4).state_dict()
        torch.manual_seed(0)
        zero = DnCNN(depth=4, width=4, zero_init=True).state_dict()
    assert [key for key in usual if not torch.equal(usual[key], zero[key])] == [list(usual)[-1]]


@pytest.mark.parametrize("skip", [False, True])
def test_bound_squashes_the_residual(skip: bool) -> None:
    front_end, images, bound = DnCNN(depth=3, width=4, bound=0.05, skip=skip).eval(), draw(4, 3, 8, 8), 0.05
    with torch.no_grad():
        largest = front_end.residual(images).abs().max()
        front_end.residual[-1].weight.mul_(5 * bound / largest)  # type: ignore[operator]
        raw, change = front_end.residual(images), front_end(images) - images * skip
    torch.testing.assert_close(change, bound * (raw / bound).tanh())
    assert change.abs().max() <= bound


def test_bound_limits_only_large_residuals() -> None:
    front_end, images = DnCNN(depth=3, width=4, bound=0.05, skip=False).eval(), draw(4, 3, 8, 8)
    last = front_end.residual[-1].weight
    assert isinstance(last, nn.Parameter)
    with torch.no_grad():
        last.mul_(0.005 / front_end.residual(images).abs().max())
        torch.testing.assert_close(front_end(images), front_end.residual(images), rtol=0.01, atol=1e-6)
        last.mul_(1e6)
        assert front_end(images).abs().max() <= 0.05


@pytest.mark.parametrize("bound", [-0.01, math.inf, math.nan])
def test_impossible_bound_is_refused(bound: float) -> None:
    with pytest.raises(InputError, match=r"bound=.*: must be 0 for no bound, or above 0 and finite"):
        DnCNN(depth=3, width=2, bound=bound)


def test_options_of_another_kind_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'dncnn': cannot be built with {'bound': '8/255'}"):
        build_model("dncnn", {"bound": "8/255"})


# calibration


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no norm": {"norm": False},
    "no skip": {"skip": False},
    "neither": {"norm": False, "skip": False},
    "bound": {"bound": 0.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_calibration_works_with_every_option(options: dict[str, Any]) -> None:
    images = draw(16, 3, 8, 8)
    front_end = calibrated_front_end(images, residual_std=0.02, seed=0, depth=6, width=4, **options)
    assert not front_end.training
    assert (front_end.skip, front_end.bound) == (options.get("skip", True), options.get("bound", 0.0))
    with torch.no_grad():
        residual = front_end(images) - images * front_end.skip
    assert residual.std().item() == pytest.approx(0.02, rel=0.01)


def test_calibration_is_of_the_residual_before_its_bound() -> None:
    images = draw(16, 3, 8, 8)
    front_end = calibrated_front_end(images, residual_std=0.02, seed=0, depth=4, width=4, bound=0.01)
    with torch.no_grad():
        assert front_end.residual(images).std().item() == pytest.approx(0.02, rel=1e-3)
        assert (front_end(images) - images).abs().max() < 0.01 + 1e-6


def test_zero_init_cannot_be_calibrated() -> None:
    with pytest.raises(InputError, match=r"its residual has a standard deviation of 0\.0"):
        calibrated_front_end(draw(4, 3, 8, 8), residual_std=0.02, seed=0, depth=3, width=2, zero_init=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_calibrated_front_end_takes_channels_from_images(channels: int) -> None:
    images = draw(4, channels, 8, 8)
    assert calibrated_front_end(images, residual_std=0.02, seed=0, depth=3, width=2)(images).shape == images.shape


@pytest.mark.parametrize("asked", [0.01, 0.05])
def test_calibrated_front_end_is_nearly_the_identity(asked: float) -> None:
    images = draw(32, 3, 16, 16)
    front_end = calibrated_front_end(images, residual_std=asked, seed=0, depth=9, width=8)
    with torch.no_grad():
        residual = front_end(images) - images
        other = front_end(draw(32, 3, 16, 16, seed=1)) - draw(32, 3, 16, 16, seed=1)
    assert residual.std().item() == pytest.approx(asked, rel=1e-3)
    assert other.std().item() == pytest.approx(asked, rel=0.1)  # images it was not calibrated on


def test_calibrated_front_end_has_statistics_of_its_images() -> None:
    images = draw(16, 3, 16, 16)
    front_end = calibrated_front_end(images, residual_std=0.02, seed=0, depth=4, width=4)
    assert not any(module.training for module in front_end.modules())
    norms = [module for module in front_end.residual if isinstance(module, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1, 0.1]
    assert norms[0].running_mean is not None
    assert norms[0].running_var is not None
    with torch.no_grad():
        seen = front_end.residual[:3](images)  # what the first batch norm sees
    torch.testing.assert_close(norms[0].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].running_var, seen.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_calibrating_twice_changes_nothing() -> None:
    images = draw(16, 3, 16, 16)
    front_end = calibrated_front_end(images, residual_std=0.02, seed=0, depth=4, width=4)
    before = {key: value.clone() for key, value in front_end.state_dict().items()}
    after = calibrate(front_end, images, 0.02).state_dict()
    assert all(torch.allclose(before[key], after[key], rtol=1e-4, atol=1e-7) for key in before)


def test_calibrated_front_end_depends_on_its_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        return next(
            calibrated_front_end(draw(4, 3, 8, 8), residual_std=0.02, seed=seed, depth=4, width=4).parameters()
        ).detach()

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


@pytest.mark.parametrize("asked", [0.0, -0.1, math.nan, math.inf])
def test_impossible_residual_is_refused(asked: float) -> None:
    with pytest.raises(InputError, match=r"residual_std=.*must be above 0 and finite"):
        calibrated_front_end(draw(4, 3, 8, 8), residual_std=asked, seed=0, depth=4, width=4)


def test_residual_that_does_not_vary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.init, "kaiming_normal_", nn.init.zeros_)
    with pytest.raises(InputError, match=r"front_end: .* 0\.0 over the images, so it cannot be scaled"):
        calibrated_front_end(draw(4, 3, 8, 8), residual_std=0.02, seed=0, depth=4, width=4)
