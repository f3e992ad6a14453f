"""EOT: attacks on randomized models use means over several forward passes, not a single one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.eot import averaged, on_average
from pytest_gradmask.attacks.evaluate import mean_logit_margins, value_and_grad
from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.attacks.protocol import AttackFunction
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models.composites import Mixture, RandomizedEnsemble
from pytest_gradmask.threat import ThreatModel
from tests.toys import Half, draw, linear, oracle, predictions, seeded


class Noisy(nn.Module):
    """A binary linear classifier of the image with added noise."""

    def __init__(self, model: nn.Module, std: float) -> None:
        super().__init__()
        self.model, self.std = model, std

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images + self.std * torch.randn_like(images))
        return logits


class Lottery(nn.Module):
    """Misclassifies with a probability that does not depend on the image."""

    def __init__(self, wrong_chance: float) -> None:
        super().__init__()
        self.chance = wrong_chance

    def forward(self, images: Tensor) -> Tensor:
        lucky = (torch.rand(len(images)) < self.chance).float()
        score = -1 + 3 * lucky
        return torch.stack([-score, score], 1) / 2


def test_value_and_grad_averages_over_passes() -> None:
    members = [linear(seed=seed) for seed in range(2)]
    images, labels = draw(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.manual_seed(0)
    sampled = value_and_grad(oracle(RandomizedEnsemble(members)), images, labels, cross_entropy, eot=400)
    exact = value_and_grad(
        oracle(Mixture(members), members=members, weights=(0.5, 0.5)), images, labels, cross_entropy, eot=1
    )
    torch.testing.assert_close(sampled.losses, exact.losses, rtol=0.2, atol=0.3)
    torch.testing.assert_close(sampled.gradient, exact.gradient, rtol=0.2, atol=0.1)
    for number, field in enumerate((exact.losses, exact.logit_margins)):
        each = torch.stack([(cross_entropy, logit_margin)[number](member(images), labels) for member in members])
        torch.testing.assert_close(field, each.mean(0))
    assert sampled.fooled is None
    share = torch.stack([logit_margin(member(images), labels) > 0 for member in members]).float().mean(0)
    torch.testing.assert_close(exact.fooled, share)


@pytest.mark.parametrize("attack", [pgd, apgd], ids=["pgd", "apgd"])
def test_best_iterate_by_the_mean(attack: Callable[..., Tensor]) -> None:
    """In a single forward pass, some iterate looks like a success although the model is nearly always correct."""
    images, labels = draw(40, 1, 2, 2), torch.zeros(40, dtype=torch.int64)
    model = oracle(Lottery(wrong_chance=0.2))
    found = attack(model, images, labels, threat=ThreatModel(0.1), steps=4, generator=seeded(), eot=50)
    assert (mean_logit_margins(model, found, labels, 200) < 0).all()


def test_eot_averages_noise() -> None:
    weight = torch.ones(1, 8, 8)
    images = torch.full((10, 1, 8, 8), 0.5)
    half = Half(weight, bias=-0.5 * 64 + 1.0)
    labels = predictions(half, images)
    model = oracle(Noisy(half, 0.5))
    threat = ThreatModel(0.1)
    found = apgd(model, images, labels, threat=threat, steps=20, generator=seeded(), eot=8, stop_early=False)
    assert (mean_logit_margins(model, found, labels, 400) > 4).all()  # 5.4 at the optimum


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(partial(autoattack.square, steps=200), id="square"),
        pytest.param(partial(autoattack.fab_t, steps=10, targets=3), id="fab-t"),
        pytest.param(partial(autoattack.apgd_ce, steps=10), id="apgd-ce"),
    ],
)
def test_attacks_without_eot_on_average(attack: partial[Tensor]) -> None:
    members = [linear(seed=0), linear(seed=1)]
    mixture = Mixture(members)
    images = draw(256, 3, 8, 8)
    labels = mixture(images).argmax(1)
    threat = ThreatModel(0.1)
    fooled = []
    for passes in (1, 16):
        model = oracle(RandomizedEnsemble(members, each_image=True))
        found = on_average(attack, passes)(model, images, labels, threat=threat, generator=seeded())
        assert threat.contains(found, images).all()
        fooled.append(float((mixture(found).argmax(1) != labels).float().mean()))
    assert fooled[1] > fooled[0] + 0.1


def test_averaged_is_the_mean_of_probabilities() -> None:
    members = [linear(seed=0), linear(seed=1)]
    images = draw(3, 3, 8, 8)
    torch.manual_seed(0)
    many = averaged(RandomizedEnsemble(members), 600)(images)
    torch.testing.assert_close(many.exp(), Mixture(members)(images).exp(), atol=0.06, rtol=0)
    assert averaged(members[0], 1) is members[0]
    attack: AttackFunction = partial(pgd, steps=1)
    assert on_average(attack, 1) is attack
    with pytest.raises(InputError, match="passes=0: must be a whole number of at least 1"):
        averaged(members[0], 0)


def test_zero_order_evaluates_iterates_by_the_mean() -> None:
    images, labels = draw(40, 1, 2, 2), torch.zeros(40, dtype=torch.int64)
    model = oracle(Lottery(wrong_chance=0.2))
    run = partial(zero_order, model, images, labels, threat=ThreatModel(0.1), steps=10, pairs=1)
    queries = 10 * (2 * 1 + 20) + 20
    run(generator=seeded(), eot=20)
    assert model.forwards == queries * 40
