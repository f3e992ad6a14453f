"""The binarization test: attacks that work pass it, weak or misled attacks fail it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audits.honest.wrong_gradient import size_for_cosine, wrong_gradient
from pytest_gradmask.attacks.bypass.bpda import bypassed
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.binarization.run import BinarizationTest
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models.composites import Composite, Mixture, RandomizedEnsemble
from pytest_gradmask.threat import ThreatModel
from tests.binarization.binarization_toys import IMAGES, PGD, THREAT, convnet, half_fgsm, on_toy
from tests.toys import (
    Detach,
    KillGradient,
    Noisy,
    Quantize,
    Softmax,
    global_state,
    masked,
    predictions,
)


def unmoved(_model: nn.Module, images: Tensor, _labels: Tensor, **_: Any) -> Tensor:
    """An attack that returns its input."""
    return images


def noise(
    _model: nn.Module, images: Tensor, _labels: Tensor, *, threat: ThreatModel, generator: torch.Generator
) -> Tensor:
    """An attack that returns a random corner of the ball."""
    sign = torch.randn(images.shape, generator=generator).sign()
    return threat.project(images + threat.eps * sign, images)


both_norms = pytest.mark.parametrize("threat", [THREAT, ThreatModel(0.8, "L2")], ids=["Linf", "L2"])


@both_norms
@pytest.mark.parametrize("attack", [PGD, partial(apgd, steps=10)], ids=["pgd", "apgd"])
def test_working_attack_passes(attack: Callable[..., Tensor], threat: ThreatModel) -> None:
    result = on_toy(convnet(), attack, threat=threat)
    assert result.ok
    assert not result.fails
    assert result.on_logits == 0
    assert result.tested >= 7


@both_norms
@pytest.mark.parametrize("front", [KillGradient, Detach, Quantize])
def test_masked_gradients_fail_and_bpda_passes(front: Callable[[], nn.Module], threat: ThreatModel) -> None:
    model = masked(front, convnet())
    blind = on_toy(model, threat=threat)
    assert blind.fails
    assert not blind.ok
    assert on_toy(model, threat=threat, through=bypassed(model, {"0": None})).ok


@both_norms
@pytest.mark.parametrize("attack", [unmoved, noise])
def test_attack_without_search_fails(attack: Callable[..., Tensor], threat: ThreatModel) -> None:
    result = on_toy(convnet(), attack, threat=threat)
    assert result.fails
    assert result.passed == 0
    assert result.queries == 0


@both_norms
def test_step_of_half_of_eps_fails(threat: ThreatModel) -> None:
    result = on_toy(convnet(), half_fgsm, threat=threat)
    assert result.fails
    assert result.passed == 0


@both_norms
def test_wrong_gradient_fails(threat: ThreatModel) -> None:
    model, attack = convnet(), partial(apgd, steps=20)
    size = size_for_cosine(model, model[1], IMAGES, predictions(model, IMAGES), 0.5)
    with wrong_gradient(model[1], size):
        assert on_toy(model, attack, threat=threat).fails
    assert on_toy(model, attack, threat=threat).ok


def test_success_outside_the_ball_does_not_count() -> None:
    def far(*arguments: Any, threat: ThreatModel, generator: torch.Generator) -> Tensor:
        return pgd(*arguments, threat=ThreatModel(2 * threat.eps), steps=10, generator=generator)

    result = on_toy(convnet(), far)
    assert result.invalid == result.tested
    assert result.passed == 0


def test_saturation_stops_cross_entropy_but_not_logit_margin() -> None:
    class Scale(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return 1e5 * logits

    model = nn.Sequential(convnet(), Scale()).eval()
    assert on_toy(model).fails
    assert on_toy(model, partial(PGD, loss=logit_margin)).ok


class Features(nn.Module):
    """A network that ends in no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = convnet()[:-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)  # type: ignore[no-any-return]


def test_without_linear_layer_the_head_is_on_logits() -> None:
    result = on_toy(Features().eval())
    assert result.on_logits == result.tested + result.trivial > 0
    assert result.ok
    assert on_toy(masked(Detach, Features().eval())).fails


class ImageByImage(nn.Module):
    """A network that `torch.vmap` runs, so that its last layer has no features that can be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.network = convnet()

    def forward(self, images: Tensor) -> Tensor:
        return torch.vmap(lambda image: self.network(image[None])[0])(images)  # type: ignore[no-any-return]


def test_inside_vmap_the_head_is_on_logits() -> None:
    result = on_toy(ImageByImage().eval())
    assert result.on_logits == result.tested + result.trivial > 0
    assert result.ok


class Picky(nn.Module):
    """A classifier that needs its number of classes after the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = convnet()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) + torch.zeros(4)  # type: ignore[no-any-return]


def test_layer_that_cannot_be_replaced() -> None:
    result = on_toy(Picky().eval())
    assert result.on_logits == len(IMAGES) - result.unseparable


def test_few_pixels_make_images_trivial() -> None:
    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * (torch.arange(8) < 1) * (torch.arange(8) < 1)[:, None]

    result = on_toy(masked(Corner, convnet()), noise)
    assert result.trivial > 0
    assert not result.ok


def test_constant_features_are_unseparable() -> None:
    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.round() * 0

    result = on_toy(masked(Blind, convnet()))
    assert result.outcomes == ("unseparable",) * len(IMAGES)
    assert result.rate is None
    assert not result.ok
    assert not result.fails


def test_defense_that_returns_probabilities() -> None:
    defense = Defense(Softmax(convnet()).eval(), outputs="probabilities")
    assert on_toy(defense).ok
    assert on_toy(Defense(masked(Detach, Softmax(convnet()).eval()), outputs="probabilities")).fails


@pytest.mark.longer
def test_randomized_logits_are_averaged() -> None:
    model = Noisy(convnet(), 0.03).eval()
    assert on_toy(model, partial(PGD, eot=4)).ok
    assert on_toy(Noisy(masked(KillGradient, convnet()), 0.03).eval(), partial(PGD, eot=4)).fails


class Dropped(nn.Module):
    """Heavy dropout, left on, before the last layer: its noise hides every embedded adversarial example."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        *body, head = model
        self.model = nn.Sequential(*body, nn.Dropout(0.8), head)

    def forward(self, images: Tensor) -> Tensor:
        self.model[-2].train()
        logits: Tensor = self.model(images)
        self.model[-2].eval()
        return logits


@pytest.mark.slow
def test_frozen_random_numbers_make_noisy_defense_testable() -> None:
    model = Dropped(convnet()).eval()
    assert on_toy(model).tested < on_toy(model, frozen=True).tested
    assert on_toy(model, frozen=True).ok
    assert on_toy(masked(KillGradient, Dropped(convnet())), frozen=True).fails


def test_frozen_has_no_effect_on_deterministic_defense() -> None:
    assert on_toy(convnet(), frozen=True) == on_toy(convnet())


def test_ensemble_is_attacked_through_its_mixture() -> None:
    backbone = convnet()
    members = [Composite(front(), backbone) for front in (nn.Identity, KillGradient)]
    ensemble = RandomizedEnsemble(members).eval()
    assert on_toy(ensemble, through=Mixture(members).eval()).ok


def test_through_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="through: Sequential does not contain the last linear layer"):
        on_toy(convnet(), through=convnet(seed=1))


@pytest.mark.longer
def test_the_seed_decides() -> None:
    def drawn(seed: int) -> tuple[BinarizationTest, list[Tensor]]:
        returned = []

        def remember(*arguments: Any, **options: Any) -> Tensor:
            returned.append(PGD(*arguments, **options))
            return returned[-1]

        return on_toy(Noisy(convnet(), 0.1).eval(), remember, seed=seed), returned

    (first, images), (second, same), (_, other) = drawn(1), drawn(1), drawn(2)
    assert first == second
    assert torch.equal(torch.cat(images), torch.cat(same))
    assert not torch.equal(torch.cat(images), torch.cat(other))


@pytest.mark.longer
def test_no_trace_is_left() -> None:
    model = Noisy(masked(Quantize, convnet())).eval()
    model.model.train(False)
    before = global_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    given, flags = IMAGES.clone(), [(module.training, len(module._forward_hooks)) for module in model.modules()]

    def rude(target: nn.Module, images: Tensor, _labels: Tensor, **_: Any) -> Tensor:
        torch.manual_seed(1)
        target.train()
        return images.add_(5)

    for attack in (PGD, rude):
        on_toy(model, attack)
    assert global_state() == before
    assert torch.equal(IMAGES, given)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == flags
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
