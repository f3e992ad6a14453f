"""Attacks on randomized ensembles whose members are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.evaluate import logit_margins_and_fooled
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.errors import InputError
from pytest_gradmask.loading.models.composites import Mixture, RandomizedEnsemble
from pytest_gradmask.threat import ThreatModel
from tests.toys import Half, draw, linear, oracle, seeded

FAR = (-100.0, 100.0)


def known(members: list[nn.Module], weights: tuple[float, ...] | None = None) -> Oracle:
    mixture = Mixture(members, weights)
    return oracle(mixture, members=members, weights=mixture.weights)


def axis(pixel: int, sign: float, bias: float) -> Half:
    """Class 1 where ``sign`` times one of two pixels is above ``-bias``."""
    weight = torch.zeros(1, 1, 2)
    weight[..., pixel] = sign
    return Half(weight, bias)


IMAGE, LABEL = torch.zeros(1, 1, 1, 2), torch.tensor([0])


def test_perturbation_that_fools_most_members_is_kept() -> None:
    """Two members are fooled on the left, one on the right. The mean logit margin is largest on the right."""
    members: list[nn.Module] = [axis(0, -1.0, -0.5), axis(0, -1.0, -0.5), axis(0, 9.0, -0.5)]
    model = known(members)
    found = apgd(model, IMAGE, LABEL, threat=ThreatModel(1.0, "Linf", FAR), steps=20, generator=seeded(3))
    _, fooled = logit_margins_and_fooled(model, torch.tensor([[[[1.0, 0.0]]], [[[-1.0, 0.0]]]]), LABEL.repeat(2), 1)
    assert fooled is not None
    assert fooled.tolist() == pytest.approx([1 / 3, 2 / 3])
    each = member_by_member(model, IMAGE, LABEL, threat=ThreatModel(1.0, "Linf", FAR), steps=20, generator=seeded())
    assert each[0, 0, 0, 0] < -0.5
    # The gradient of the mean loss points to the right.
    assert found.abs().amax() <= 1


def test_member_by_member_transfers_to_the_others() -> None:
    members: list[nn.Module] = [linear(seed=seed) for seed in range(3)]
    images = draw(20, 3, 8, 8)
    labels = members[0](images).argmax(1)
    model, threat = known(members), ThreatModel(0.05)
    best = logit_margins_and_fooled(
        model, member_by_member(model, images, labels, threat=threat, steps=10, generator=seeded()), labels, 1
    )
    for member in members:
        alone = apgd(member, images, labels, threat=threat, steps=10, generator=seeded(), stop_early=False)
        fooled = logit_margins_and_fooled(model, alone, labels, 1)[1]
        assert best[1] is not None
        assert fooled is not None
        assert best[1].mean() >= fooled.mean() - 0.05


def test_fooled_members_have_no_gradient() -> None:
    logits = torch.tensor([[0.0, 100.0, 0.0], [100.0, 0.0, 0.0], [1.0, 1.2, 0.0]], requires_grad=True)
    joint = joint_margins(logits, torch.zeros(3, dtype=torch.int64))
    assert joint[0] == 0.5
    assert joint[1] < -1
    (gradient,) = torch.autograd.grad(joint.sum(), logits)
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


def test_joint_margins_balance_members_of_different_scale() -> None:
    """The logit margin of one member increases fifty times as fast as that of the other, in another direction."""
    steep, flat = axis(0, 50.0, -1.0), axis(1, 1.0, -0.5)
    model, threat = known([steep, flat]), ThreatModel(1.0, "L2", FAR)
    start, labels = torch.zeros(8, 1, 1, 2), torch.zeros(8, dtype=torch.int64)
    found = apgd(model, start, labels, threat=threat, steps=60, generator=seeded(), loss=joint_margins)
    fooled = logit_margins_and_fooled(model, found, labels, 1)[1]
    assert fooled is not None
    assert (fooled == 1).all()


def test_passes_of_members_are_counted() -> None:
    model = known([linear(seed=seed) for seed in range(3)])
    images = draw(5, 3, 8, 8)
    model(images)
    assert (model.forwards, model.backwards) == (15, 0)
    model.members[1](images.requires_grad_()).sum().backward()
    assert (model.forwards, model.backwards) == (20, 5)


# the ensemble itself


def test_one_member_for_each_image() -> None:
    members = [linear(seed=seed) for seed in range(3)]
    ensemble = RandomizedEnsemble(members, (0.7, 0.2, 0.1), each_image=True)
    images = draw(1, 3, 8, 8).repeat(600, 1, 1, 1)
    torch.manual_seed(0)
    answers = ensemble(images)
    of_members = torch.cat([member(images[:1]) for member in members])
    which = torch.cdist(answers, of_members).argmin(1)
    assert (torch.cdist(answers, of_members).amin(1) < 1e-3).all()
    assert which.bincount(minlength=3).div(600).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.06)


def test_order_of_images_with_one_member_each() -> None:
    ensemble = RandomizedEnsemble([linear(seed=0), linear(seed=1)], each_image=True)
    images = draw(50, 3, 8, 8)
    of_members = torch.stack([member(images) for member in ensemble.members])
    assert ((ensemble(images) - of_members).abs().amax(2).amin(0) < 1e-4).all()


def test_mixture_weights_its_members() -> None:
    members, images = [linear(seed=seed) for seed in range(2)], draw(5, 3, 8, 8)
    expected = 0.9 * members[0](images).softmax(1) + 0.1 * members[1](images).softmax(1)
    torch.testing.assert_close(Mixture(members, (0.9, 0.1))(images).exp(), expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"weights=\(1.0,\): 1 weights for 2 members; give one for each"),
        ((0.5, 0.6), "must be above 0 and sum to 1"),
        ((1.0, 0.0), "must be above 0 and sum to 1"),
        ((float("nan"), 1.0), "must be above 0 and sum to 1"),
    ],
)
def test_invalid_weights(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RandomizedEnsemble([linear(), linear()], weights)
    with pytest.raises(InputError, match=message):
        Mixture([linear(), linear()], weights)
