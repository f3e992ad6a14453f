"""ARC: against exact optima on linear members, and where mean gradients lead nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.evaluate import value_and_grad
from pytest_gradmask.attacks.losses import Loss, cross_entropy, logit_margin
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.threat import Norm, ThreatModel
from tests.attacks.ensemble_toys import FAR, Ensemble, Scores, both_norms, expected_accuracy, largest_room, opposed
from tests.toys import Half, Shape, draw, half_problem, linear, predictions, seeded

UNIT = (0.0, 1.0)


class _Mean(nn.Module):
    """Members in turn: EOT over all of them follows the gradient of their mean loss."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members, self.calls = list(members), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.members[self.calls % len(self.members)](images)  # type: ignore[no-any-return]


def attack_mean_loss(
    model: Ensemble, images: torch.Tensor, labels: torch.Tensor, *, threat: ThreatModel, loss: Loss = cross_entropy
) -> torch.Tensor:
    members = list(model.members)
    return pgd(_Mean(members), images, labels, threat=threat, steps=40, generator=seeded(), loss=loss, eot=len(members))


@both_norms
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 4, 4), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("steps", [1, 20])
def test_just_above_the_distance_of_the_boundary_one_member_falls_just_below_not(
    norm: Norm, shape: Shape, count: int, steps: int
) -> None:
    member, images, labels = half_problem(count, shape, norm, distance=0.5)
    model = Ensemble([member])
    for eps, broken in ((0.5 * 1.001, True), (0.5 * 0.999, False)):
        threat = ThreatModel(eps, norm, FAR)
        found = arc(model, images, labels, threat=threat, steps=steps, generator=seeded())
        assert threat.contains(found, images).all()
        assert (expected_accuracy(model, found, labels) == (0 if broken else 1)).all()


@pytest.mark.parametrize(("bias", "broken"), [(-0.58, True), (-0.57, False)])
def test_what_pixels_at_a_bound_cannot_take_the_others_do(bias: float, broken: bool) -> None:
    # The two free pixels alone lower the sum, 1 at first, by up to 0.3 * sqrt(2) = 0.424.
    model = Ensemble([Half(torch.ones(1, 2, 2), bias)])
    images, labels = torch.tensor([0.0, 0.0, 0.5, 0.5]).view(1, 1, 2, 2), torch.tensor([1])
    found = arc(model, images, labels, threat=ThreatModel(0.3, "L2"), steps=5, generator=seeded())
    assert (expected_accuracy(model, found, labels) == (0 if broken else 1)).all()


def random_pairs(
    norm: Norm, size: int, bounds: tuple[float, float], weights: tuple[float, float], count: int = 50
) -> tuple[Ensemble, torch.Tensor, torch.Tensor, ThreatModel, torch.Tensor, torch.Tensor]:
    """Pairs of linear classifiers, one pair an image, with boundaries nearer than the ball's radius or a bit further.

    Returns:
        The ensemble, images, labels and threat; the lowest expected accuracy in the ball; and whether it stays the
        same for boundaries nearer or further by a hundredth of the radius.
    """
    generator = seeded(size)
    threat = ThreatModel(0.2 if bounds == UNIT else 1.0, norm, bounds)
    images = torch.rand(count, 1, 1, size, generator=generator)
    normals = torch.randn(2, count, 1, 1, size, generator=generator)
    dual = normals.flatten(2).norm(p=1 if norm == "Linf" else 2, dim=2)
    normals = normals / dual.view(2, count, 1, 1, 1)
    distances = 1.1 * threat.eps * torch.rand(2, count, generator=generator)
    biases = distances - (normals * images).flatten(2).sum(2)
    scales = 1 + 10 * torch.rand(2, count, generator=generator)
    model = Ensemble([Scores(normals[m] * scales[m].view(-1, 1, 1, 1), biases[m] * scales[m]) for m in (0, 1)], weights)
    lowest, clear = torch.ones(count), torch.ones(count, dtype=torch.bool)
    for i in range(count):
        for fooled in ([0], [1], [0, 1]):
            room = largest_room(
                normals[fooled, i].flatten(1).double().numpy(),
                distances[fooled, i].double().numpy(),
                images[i].flatten().double().numpy(),
                threat,
            )
            clear[i] &= abs(room) > 0.01 * threat.eps
            if room > 0:
                lowest[i] = min(lowest[i], 1 - sum(weights[m] for m in fooled))
    return model, images, torch.ones(count, dtype=torch.int64), threat, lowest, clear


@both_norms
@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize("bounds", [FAR, UNIT], ids=["free", "bounded"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7)], ids=str)
def test_two_linear_members_are_fooled_as_far_as_possible(
    norm: Norm, size: int, bounds: tuple[float, float], weights: tuple[float, float]
) -> None:
    model, images, labels, threat, lowest, clear = random_pairs(norm, size, bounds, weights)
    assert clear.float().mean() > 0.8
    assert {round(value, 3) for value in lowest[clear].tolist()} >= {0.0, round(min(weights), 3)}

    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded())
    assert threat.contains(found, images).all()
    reached = expected_accuracy(model, found, labels)
    torch.testing.assert_close(reached[clear], lowest[clear], atol=1e-5, rtol=0)

    # The control: the mean loss does not lead there, so that the draws ask for more than a good gradient attack.
    mean = expected_accuracy(model, attack_mean_loss(model, images, labels, threat=threat), labels)
    assert (mean >= lowest - 1e-5)[clear].all()
    assert (mean > lowest + 1e-5)[clear].float().mean() > 0.1


@both_norms
@pytest.mark.parametrize("step_size", [None, 0.1], ids=["default", "short"])
def test_members_whose_gradients_cancel_do_not_stop_it(norm: Norm, step_size: float | None) -> None:
    model, images, labels = opposed(norm=norm)
    threat = ThreatModel(0.6, norm, FAR)
    gradients = [value_and_grad(member, images, labels, logit_margin, 1).gradient for member in model.members]
    assert torch.equal(gradients[0], -gradients[1])

    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded(), step_size=step_size)
    assert (expected_accuracy(model, found, labels) == 0.5).all()


def test_the_attack_on_the_mean_loss_goes_nowhere_there() -> None:
    model, images, labels = opposed()
    members = list(model.members)
    assert value_and_grad(members[0], images, labels, logit_margin, 1).gradient.abs().max() > 0.1
    assert value_and_grad(_Mean(members), images, labels, logit_margin, 2).gradient.abs().max() == 0
    found = attack_mean_loss(model, images, labels, threat=ThreatModel(0.6, "Linf", FAR), loss=logit_margin)
    assert (expected_accuracy(model, found, labels) == 1).all()


@both_norms
@pytest.mark.parametrize("heavy", [0, 1])
def test_the_heaviest_is_fooled_where_only_one_can_be(norm: Norm, heavy: int) -> None:
    model, images, labels = opposed(norm=norm)
    model.weights = [0.7, 0.3] if heavy == 0 else [0.3, 0.7]
    found = arc(model, images, labels, threat=ThreatModel(0.6, norm, FAR), steps=10, generator=seeded())
    assert (predictions(model.members[heavy], found) != labels).all()
    assert (predictions(model.members[1 - heavy], found) == labels).all()


@both_norms
def test_two_light_members_outweigh_the_heaviest(norm: Norm) -> None:
    model, images, labels = opposed(norm=norm)
    heaviest, light = model.members
    threat = ThreatModel(0.6, norm, FAR)
    alone = Ensemble([heaviest, light, light], [0.4, 0.3, 0.3])
    found = arc(alone, images, labels, threat=threat, steps=10, generator=seeded())
    torch.testing.assert_close(expected_accuracy(alone, found, labels), torch.full((6,), 0.4))


@both_norms
def test_all_of_several_classes_and_members_fall_at_a_large_radius_and_none_at_a_tiny_one(norm: Norm) -> None:
    images = draw(8, 3, 8, 8)
    for classes in (2, 3, 7):
        first, *others = [linear(classes, seed) for seed in (0, 1, 2)]
        labels = predictions(first, images)
        for other in others:  # alike enough to agree on the clean images
            other[1].load_state_dict(
                {name: first[1].state_dict()[name] + 0.1 * value for name, value in other[1].state_dict().items()}
            )
        model = Ensemble([first, *others], [0.5, 0.3, 0.2])
        clean = expected_accuracy(model, images, labels)
        scale = 1.0 if norm == "Linf" else 192**0.5
        for eps, lowest in ((0.2 * scale, torch.zeros(8)), (1e-6 * scale, clean)):
            threat = ThreatModel(eps, norm)
            found = arc(model, images, labels, threat=threat, steps=20, generator=seeded())
            assert threat.contains(found, images).all()
            torch.testing.assert_close(expected_accuracy(model, found, labels), lowest)


@both_norms
@pytest.mark.parametrize("nearest", [1, 2])
def test_the_nearest_class_is_not_the_likeliest(norm: Norm, nearest: int) -> None:
    # Class 1 is the likelier wrong one and 0.5 away, class 2 is 0.2 away: its logit is lower and its gradient steeper.
    class Three(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x, y = images.flatten(1).T
            return torch.stack([0 * x, y - 0.5, 10 * x - 2.0], 1)

    images, labels = torch.zeros(2, 1, 1, 2), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(0.3, norm, FAR)
    model = Ensemble([Three()])
    found = arc(model, images, labels, threat=threat, steps=1, generator=seeded(), nearest=nearest)
    assert (expected_accuracy(model, found, labels) == (0 if nearest == 2 else 1)).all()


def test_steps_become_short_enough_for_a_small_target() -> None:
    # The member errs in a thin shell only, which long steps jump over for ever.
    class Shell(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            moved = images.flatten(1).sum(1)
            score = 0.05 - (moved - 0.6).abs()
            return torch.stack([torch.zeros_like(score), score], 1)

    images, labels = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(1.0, "L2", FAR)
    found = arc(Ensemble([Shell()]), images, labels, threat=threat, steps=12, generator=seeded(), step_size=0.4)
    assert (expected_accuracy(Ensemble([Shell()]), found, labels) == 0).all()


def test_a_step_that_gives_back_a_member_is_undone_and_tried_shorter() -> None:
    # At 0.5 one member is fooled, and seems to be up to 2. It is right again from 0.6 on; the other falls at 0.55.
    class Score(nn.Module):
        def __init__(self, score: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.score = score

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            score = self.score(images.flatten(1).sum(1))
            return torch.stack([torch.zeros_like(score), score], 1)

    band = Score(lambda x: torch.where(x < 0.6, 4 * (x - 0.4), -1.0 - 0 * x))
    other = Score(lambda x: x - 0.55)
    model = Ensemble([band, other], [0.6, 0.4])
    images, labels = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(2.0, "L2", FAR)
    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded(), step_size=0.5)
    assert (expected_accuracy(model, found, labels) == 0).all()
