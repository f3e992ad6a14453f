"""Known defenses, one by one: what each does to images, gradients and outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from audits.defenses.activations import ActivationPruning, KWinnersTakeAll, replace_relus
from audits.defenses.jpeg import Jpeg, SmoothJpeg, quantization_tables
from audits.defenses.outputs import THREE, TWO, Grouped, ReverseSigmoid, Scaled, SmoothedOutputs, Softmax, regroup
from audits.defenses.randomized import Purification, ResizeAndPad
from audits.defenses.rough import Mirrored, Ripple
from audits.defenses.shattered import DeadZone, Detached, GradientKiller, Quantization, Thermometer, decoder
from audits.defenses.smoothing import Blur, Median, TotalVariation
from audits.zoo import ZOO
from pytest_gradmask import Defense, load_dataset, load_model
from pytest_gradmask.attacks.bypass.search import find_bypass
from pytest_gradmask.attacks.losses import cross_entropy
from pytest_gradmask.defense import as_defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import ThreatModel
from tests.toys import draw, linear, oracle, predictions, seeded

DATA = load_dataset("embedded")


# what each defense does to the gradient


def gradient_through(front_end: nn.Module, images: Tensor) -> Tensor:
    """Gradient of a random linear function of the output, at the images; zero where no graph leads to them."""
    point = images.clone().requires_grad_(True)
    weights = torch.randn(front_end(images).shape, generator=seeded())
    (gradient,) = torch.autograd.grad((front_end(point) * weights).sum() + 0 * point.sum(), point)
    return gradient


@pytest.mark.parametrize(
    "front_end",
    [GradientKiller(), Detached(), Quantization(), Thermometer(), Jpeg(), TotalVariation(), Purification()],
    ids=lambda front_end: type(front_end).__name__,
)
def test_there_is_no_gradient(front_end: nn.Module) -> None:
    assert not gradient_through(front_end, DATA.images[:4]).any()


@pytest.mark.parametrize(
    "front_end", [SmoothJpeg(), Median(), Blur(), Ripple(), ResizeAndPad()], ids=lambda module: type(module).__name__
)
def test_there_is_a_gradient(front_end: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        assert gradient_through(front_end, DATA.images[:4]).flatten(1).any(1).all()


@pytest.mark.parametrize(
    "front_end",
    [GradientKiller(), Detached(), Quantization(), Jpeg(), SmoothJpeg(), TotalVariation(), Median(), Blur(), Ripple()],
    ids=lambda front_end: type(front_end).__name__,
)
def test_images_hardly_change(front_end: nn.Module) -> None:
    images = DATA.images[:8]
    change = (front_end(images) - images).abs().flatten(1).mean(1)
    assert (change < 0.06).all()
    assert front_end(images).shape == images.shape


def test_detached_has_a_twin_with_a_graph() -> None:
    front_end, images = Detached(), DATA.images[:2]
    assert torch.equal(front_end(images), front_end.smooth(images))
    assert gradient_through_function(front_end.smooth, images).any()


def gradient_through_function(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(point).sum(), point)
    return gradient


def test_quantization_has_as_many_levels_as_it_says() -> None:
    values = Quantization(3)(torch.linspace(0, 1, 1000).view(1, 1, 10, 100)).unique()
    torch.testing.assert_close(values, torch.arange(8) / 7)


def test_thermometer_codes_decode_up_to_resolution() -> None:
    encoder, images = Thermometer(16), draw(2, 3, 5, 5)
    codes = encoder(images)
    assert codes.shape == (2, 48, 5, 5)
    assert set(codes.unique().tolist()) == {0.0, 1.0}
    assert (codes.unflatten(1, (3, 16)).diff(dim=2) <= 0).all()
    with torch.no_grad():
        assert (decoder(16)(codes) - images).abs().max() <= 0.5 / 16 + 1e-6
        torch.testing.assert_close(decoder(16)(encoder.soft(images)), images - 0.5 / 16)


def test_bypasses_of_thermometer_and_quantization() -> None:
    """Bypass of thermometer is fitted and of quantization identity."""
    codes = nn.Sequential(Thermometer(), decoder(), linear(shape=(3, 8, 8))).eval()
    found = find_bypass(codes, draw(4, 3, 8, 8))
    assert list(found) == ["0"]
    assert found["0"] is not None
    rounded = nn.Sequential(Quantization(5), nn.Identity(), linear(shape=(3, 8, 8))).eval()
    assert find_bypass(rounded, draw(4, 3, 8, 8)) == {"0": None}


def test_dead_zone_depends_on_the_image() -> None:
    gradient = gradient_through(DeadZone(), DATA.images).flatten(1)
    dead = (gradient == 0).all(1)
    assert 4 <= int(dead.sum()) <= 16
    # No attack leaves it by its random start.
    noisy = ThreatModel().random_start(DATA.images, seeded())
    assert torch.equal((gradient_through(DeadZone(), noisy).flatten(1) == 0).all(1), dead)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_both_jpegs_agree(quality: int) -> None:
    grey = DATA.images[:4].mean(1, keepdim=True).expand(-1, 3, -1, -1)  # colours are subsampled by one of them only
    ours, theirs = SmoothJpeg(quality), Jpeg(quality)
    assert (theirs(grey) - grey).abs().mean() > 0.001
    assert (ours(grey) - theirs(grey)).abs().mean() < (theirs(grey) - grey).abs().mean()


def test_jpeg_tables_are_those_of_the_standard() -> None:
    """JPEG tables are those of the standard at quality 50, and ones at 100."""
    assert quantization_tables(50)[0, 0, :3].tolist() == [16, 11, 10]
    assert quantization_tables(50)[1, 3, 3] == 99
    assert (quantization_tables(100) == 1).all()
    with pytest.raises(InputError, match="quality=0"):
        quantization_tables(0)


def test_smooth_jpeg_refuses_what_has_no_whole_blocks() -> None:
    with pytest.raises(InputError, match="multiples of 8"):
        SmoothJpeg()(draw(1, 3, 12, 8))


def variation(images: Tensor) -> Tensor:
    return images.diff(dim=2).abs().mean((1, 2, 3)) + images.diff(dim=3).abs().mean((1, 2, 3))


def test_total_variation_falls_with_the_weight() -> None:
    """Total variation falls with the weight and a constant stays."""
    images = DATA.images[:8]
    little, much = variation(TotalVariation(0.02)(images)), variation(TotalVariation(0.1)(images))
    assert (much < little).all()
    assert (little < variation(images)).all()
    constant = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(TotalVariation()(constant), constant)


def test_median_forgets_a_lone_bright_pixel_and_blur_does_not() -> None:
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 4] = 1
    assert not Median()(images).any()
    assert Blur()(images).sum() == pytest.approx(1, abs=1e-5)


def test_ripple_has_a_large_gradient_of_either_sign() -> None:
    gradient_norms = gradient_through_function(Ripple(), DATA.images[:4])
    assert gradient_norms.abs().max() > 20
    assert 0.4 < float((gradient_norms > 0).float().mean()) < 0.6


@pytest.mark.parametrize("name", ["random-front-end", "mirrored"])
def test_deep_front_end_gradient_changes_after_a_tiny_step(name: str) -> None:
    # The control is the backbone alone.
    images, labels = DATA.images[:6], DATA.labels[:6]

    def turned(model: nn.Module) -> float:
        gradients = []
        for moved in (images, images + 1e-3 * torch.randn(images.shape, generator=seeded())):
            point = moved.clone().requires_grad_(True)
            gradients.append(torch.autograd.grad(cross_entropy(model(point), labels).sum(), point)[0].flatten(1))
        return float(torch.cosine_similarity(gradients[0], gradients[1]).mean())

    assert turned(as_defense(ZOO[name].build(load_model)).model) < 0.5 < 0.8 < turned(load_model("resnet-standard"))


def test_mirrored_is_far_from_the_identity_and_near_the_mirror() -> None:
    front_end, images = Mirrored(), DATA.images
    with torch.no_grad():
        output = front_end(images)
    assert (output - front_end.mirror(images)).abs().mean() < 0.02
    assert (output - images).abs().mean() > 0.1


def test_k_winners_take_all_keeps_the_largest() -> None:
    hidden = torch.tensor([[3.0, -1, 2, 5, -4], [1, 2, 3, 4, 5]]).view(2, 5, 1, 1)
    winners = KWinnersTakeAll(0.4)(hidden).flatten(1)
    assert winners.tolist() == [[3, 0, 0, 5, 0], [0, 0, 0, 4, 5]]


def test_every_relu_is_replaced() -> None:
    model = replace_relus(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True))), nn.Tanh)
    assert [type(module) for module in model.modules() if not list(module.children())] == [nn.Tanh, nn.Conv2d, nn.Tanh]


def test_activation_pruning_keeps_the_mean_and_large_activations() -> None:
    hidden = torch.tensor([-1.0, 0.1, 1, 4]).view(1, 4, 1, 1)
    prune = ActivationPruning(0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = torch.cat([prune(hidden).flatten(1) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), torch.tensor([0.0, 0.1, 1, 4]), atol=0.06, rtol=0.05)
    rates = (draws > 0).float().mean(0)
    assert rates[0] == 0 < rates[1] < rates[2] < rates[3]


def test_resizing_keeps_the_size_and_pads_with_zeros() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = torch.stack([ResizeAndPad()(torch.ones(1, 3, 32, 32)) for _ in range(20)])
    assert outputs.shape == (20, 1, 3, 36, 36)
    assert outputs.sum((1, 2, 3, 4)).unique().tolist() == sorted({3.0 * size**2 for size in range(32, 37)})


def test_purification_removes_noise_it_has_not_added() -> None:
    images = torch.nn.functional.interpolate(draw(4, 3, 4, 4), size=(32, 32), mode="bilinear")
    noisy = images + 0.03 * torch.randn(images.shape, generator=seeded())
    cleaned = Purification().denoised(noisy)
    assert (cleaned - images).square().mean() < 0.5 * (noisy - images).square().mean()


# what each defense does to outputs


def test_saturation_hides_the_gradient_and_small_logits_do_not() -> None:
    images, labels = DATA.images, DATA.labels
    backbone = load_model("resnet-standard")

    def gone(defense: Defense) -> float:
        point = images.clone().requires_grad_(True)
        losses = cross_entropy(oracle(defense.model, outputs=defense.outputs)(point), labels)
        (gradient,) = torch.autograd.grad(losses.sum(), point)
        return float((gradient == 0).flatten(1).all(1).float().mean())

    assert gone(Defense(Scaled(backbone, 100.0))) > 0.5
    assert gone(Defense(Softmax(backbone, 0.01), outputs="probabilities")) > 0.5
    assert gone(Defense(Scaled(backbone, 0.01))) == 0
    assert gone(Defense(Softmax(backbone), outputs="probabilities")) == 0


@pytest.mark.parametrize("wrapper", [Softmax, ReverseSigmoid, SmoothedOutputs, functools.partial(Scaled, factor=100.0)])
def test_the_order_of_the_largest_stays(wrapper: Callable[[nn.Module], nn.Module]) -> None:
    backbone = load_model("resnet-adversarial")
    assert torch.equal(predictions(wrapper(backbone), DATA.images), predictions(backbone, DATA.images))


def test_where_reverse_sigmoid_falls() -> None:
    """Reverse sigmoid falls where it should rise, and only there."""

    class FixedLogits(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits

    rising = {}
    for name, low, high in (("sure", 5.0, 6.0), ("unsure", 0.0, 0.5)):
        outputs = ReverseSigmoid(FixedLogits())(torch.tensor([[low, 0.0], [high, 0.0]]))
        torch.testing.assert_close(outputs.sum(1), torch.ones(2))
        rising[name] = bool(outputs[1, 0] > outputs[0, 0])
    assert rising == {"sure": False, "unsure": True}


@pytest.mark.parametrize("groups", [TWO, THREE])
def test_groups_have_the_probability_of_their_classes(groups: tuple[int, ...]) -> None:
    backbone = load_model("resnet-adversarial")
    with torch.no_grad():
        classes = backbone(DATA.images).softmax(1)
        found = Grouped(backbone, groups)(DATA.images).softmax(1)
    for group in range(max(groups) + 1):
        members = [number for number, each in enumerate(groups) if each == group]
        torch.testing.assert_close(found[:, group], classes[:, members].sum(1))
        assert (regroup(torch.tensor(members), groups=groups) == group).all()
