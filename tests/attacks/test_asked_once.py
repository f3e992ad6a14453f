"""Attacks of upstream's without queries that repeat the one before: the same results, from fewer passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.asked_once import AskedOnce, asked_once, every_query
from pytest_gradmask.threat import Norm
from tests.attacks.test_autoattack import NORMS, WRAPPERS, ball, problem
from tests.toys import KillGradient, draw, linear, oracle, seeded


class _SomeStuck(nn.Module):
    """No gradient for images whose first pixel is above one half."""

    def forward(self, images: Tensor) -> Tensor:
        moving = (images[:, :1, :1, :1] <= 0.5).to(images.dtype)
        return images * moving + images.detach() * (1 - moving)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("first", [nn.Identity, KillGradient, _SomeStuck])
def test_an_attack_returns_the_same(name: str, norm: Norm, first: type[nn.Module]) -> None:
    model, images, labels = problem()
    attack, plain, once = WRAPPERS[name][0], *(oracle(nn.Sequential(first(), model)) for _ in range(2))
    expected = attack(plain, images, labels, threat=ball(norm), generator=seeded())
    found = asked_once(attack)(once, images, labels, threat=ball(norm), generator=seeded())
    assert torch.equal(found, expected)
    assert once.forwards <= plain.forwards
    if first is KillGradient and name.startswith("apgd"):
        assert 2 * once.forwards < plain.forwards


def test_another_loss_at_the_same_point() -> None:
    model, images = oracle(linear(4)), draw(3, 3, 8, 8).requires_grad_(True)
    once = AskedOnce(model)
    for column in (0, 2, 2, 1):
        (expected,) = torch.autograd.grad(model(images)[:, column].sum(), images)
        (found,) = torch.autograd.grad(once(images)[:, column].sum(), images)
        torch.testing.assert_close(found, expected)
        assert found.any()


def test_a_gradient_of_an_earlier_query() -> None:
    once, model = AskedOnce(linear(4)), linear(4)
    earlier, later = (draw(2, 3, 8, 8, seed=seed).requires_grad_(True) for seed in (0, 1))
    of_earlier, of_later = (3 * once(earlier)).square().sum(), once(later).square().sum()
    for loss, images, scale in ((of_later, later, 1), (of_earlier, earlier, 3), (once(later).square().sum(), later, 1)):
        (expected,) = torch.autograd.grad((scale * model(images)).square().sum(), images)
        torch.testing.assert_close(torch.autograd.grad(loss, images)[0], expected)


def test_answers_cannot_be_changed_from_outside() -> None:
    once, images = AskedOnce(linear(4)), draw(2, 3, 8, 8)
    first = once(images).clone()
    once(images).zero_()
    assert torch.equal(once(images), first)
    images.add_(0.1)
    assert not torch.equal(once(images), first)


def test_another_batch_is_passed_on() -> None:
    model = oracle(linear(4))
    once, images = AskedOnce(model), draw(4, 3, 8, 8)
    for batch in (images, images[:2], images[:2].flip(0), images[:2].flip(0), images):
        torch.testing.assert_close(once(batch), model.model(batch))
    assert model.forwards == 4 + 2 + 2 + 4


def test_every_query_is_made_where_they_are_counted() -> None:
    model = oracle(linear(4))
    once, images = AskedOnce(model), draw(2, 3, 8, 8)
    with every_query():
        assert torch.equal(once(images), once(images))
    assert model.forwards == 4
    once(images)
    once(images)
    assert model.forwards == 6
