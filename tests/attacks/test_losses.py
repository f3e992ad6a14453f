"""Losses that attacks maximise, image by image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pytest_gradmask.attacks.losses import Loss, cross_entropy, dlr, logit_margin, unsaturated_cross_entropy
from tests.toys import seeded

LOSSES: list[Loss] = [cross_entropy, logit_margin, dlr, unsaturated_cross_entropy]


def random_logits(seed: int, classes: int = 5, count: int = 16) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def gradient(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    point = logits.clone().requires_grad_(True)
    return torch.autograd.grad(loss(point, labels).sum(), point)[0]


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_logit_margin_is_positive_where_misclassified(seed: int, classes: int) -> None:
    logits, labels = random_logits(seed, classes)
    assert torch.equal(logit_margin(logits, labels) > 0, logits.argmax(1) != labels)


@given(st.integers(0, 10_000), st.integers(3, 8))
def test_dlr_has_the_sign_of_the_logit_margin(seed: int, classes: int) -> None:
    logits, labels = random_logits(seed, classes)
    assert torch.equal(dlr(logits, labels).sign(), logit_margin(logits, labels).sign())


def test_by_hand() -> None:
    logits, labels = torch.tensor([[1.0, 4.0, 2.0, 0.0], [1.0, 4.0, 2.0, 0.0]]), torch.tensor([1, 3])
    torch.testing.assert_close(logit_margin(logits, labels), torch.tensor([-2.0, 4.0]))
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-2 / 3, 4 / 3]))
    normaliser = logits[0].exp().sum().log()
    torch.testing.assert_close(cross_entropy(logits, labels), torch.stack([normaliser - 4, normaliser]))


@pytest.mark.parametrize("shift", [-50.0, 0.0, 7.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_dlr_ignores_scale_and_shift(scale: float, shift: float) -> None:
    logits, labels = random_logits(0)
    torch.testing.assert_close(dlr(scale * logits + shift, labels), dlr(logits, labels), rtol=1e-3, atol=1e-3)


def test_zero_gradient_of_dlr() -> None:
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.0]]).repeat(4, 1)
    labels = torch.tensor([0, 1, 2, 3])
    zero = (gradient(dlr, logits, labels) == 0).all(1)
    assert zero.tolist() == [False, False, True, False]
    assert (gradient(logit_margin, logits, labels) != 0).any(1).all()


def test_gradient_of_logit_margin_does_not_saturate() -> None:
    logits, labels = torch.tensor([[200.0, 0.0, -1.0]]), torch.tensor([0])
    assert (gradient(cross_entropy, logits, labels) == 0).all()
    assert gradient(logit_margin, logits, labels).tolist() == [[-1.0, 1.0, 0.0]]


def test_cross_entropy_that_does_not_saturate() -> None:
    logits, labels = (
        torch.tensor([[17.0, 0.0, -1.0], [16.0, 0.0, -1.0], [0.0, 9.0, 1.0]]),
        torch.zeros(3, dtype=torch.int64),
    )
    values = unsaturated_cross_entropy(logits, labels)
    assert values[0] == -17
    assert torch.equal(values[1:], cross_entropy(logits, labels)[1:])
    assert (values.diff() > 0).all(), "nearer to a misclassification is more"
    gradients = gradient(unsaturated_cross_entropy, logits, labels)
    assert gradients[0].tolist() == [-1.0, 1.0, 0.0]
    assert torch.equal(gradients[1:], gradient(cross_entropy, logits, labels)[1:])


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_do_not_overflow(loss: Loss) -> None:
    # Each value fits float16, their differences and the sum over the batch do not.
    logits = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16).repeat(64, 1)
    labels = torch.ones(64, dtype=torch.int64)
    values = loss(logits, labels)
    assert values.dtype is torch.float32
    assert values.isfinite().all()
    assert values.sum().isfinite()
    torch.testing.assert_close(values, loss(logits.float(), labels))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_images_are_independent(loss: Loss, poison: float) -> None:
    logits, labels = random_logits(1)
    poisoned = logits.clone()
    poisoned[3] = poison
    others = torch.arange(len(logits)) != 3
    assert torch.equal(loss(poisoned, labels)[others], loss(logits, labels)[others])
    assert torch.equal(gradient(loss, poisoned, labels)[others], gradient(loss, logits, labels)[others])


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_logits_give_finite_losses(loss: Loss) -> None:
    assert loss(torch.zeros(2, 4), torch.tensor([0, 1])).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_are_unchanged(loss: Loss) -> None:
    logits, labels = random_logits(2)
    before = logits.clone()
    loss(logits, labels)
    assert torch.equal(logits, before)
