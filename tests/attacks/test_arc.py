"""ARC: against exact optima on linear members, and where gradients cancel in their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.evaluate import value_and_grad
from pytest_gradmask.attacks.losses import Loss, cross_entropy, logit_margin
from pytest_gradmask.attacks.pgd import pgd
from pytest_gradmask.threat import Norm, ThreatModel
from tests.attacks.ensemble_toys import FAR, Ensemble, Scores, both_norms, expected_accuracy, largest_room, opposed
from tests.toys import Half, Shape, draw, half_problem, linear, predictions, seeded

UNIT = (0.0, 1.0)


class _Mean(nn.Module):
    """The members in turn: EOT over all of them follows the gradient of their mean loss."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members, self.calls = list(members), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.members[self.calls % len(self.members)](images)  # type: ignore[no-any-return]


def attack_mean_loss(
    model: Ensemble, images: Tensor, labels: Tensor, *, threat: ThreatModel, loss: Loss = cross_entropy
) -> Tensor:
    members = list(model.members)
    return pgd(_Mean(members), images, labels, threat=threat, steps=40, generator=seeded(), loss=loss, eot=len(members))


@both_norms
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 4, 4), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("steps", [1, 20])
def test_member_is_fooled_exactly_above_its_distance(norm: Norm, shape: Shape, count: int, steps: int) -> None:
    member, images, labels = half_problem(count, shape, norm, distance=0.5)
    model = Ensemble([member])
    for eps, broken in ((0.5 * 1.001, True), (0.5 * 0.999, False)):
        threat = ThreatModel(eps, norm, FAR)
        found = arc(model, images, labels, threat=threat, steps=steps, generator=seeded())
        assert threat.contains(found, images).all()
        assert (expected_accuracy(model, found, labels) == (0 if broken else 1)).all()


@pytest.mark.parametrize(("bias", "broken"), [(-0.58, True), (-0.57, False)])
def test_free_pixels_compensate_for_clipped_ones(bias: float, broken: bool) -> None:
    # The two free pixels alone lower the sum, 1 at first, by up to 0.3 * sqrt(2) = 0.424.
    model = Ensemble([Half(torch.ones(1, 2, 2), bias)])
    images, labels = torch.tensor([0.0, 0.0, 0.5, 0.5]).view(1, 1, 2, 2), torch.tensor([1])
    found = arc(model, images, labels, threat=ThreatModel(0.3, "L2"), steps=5, generator=seeded())
    assert (expected_accuracy(model, found, labels) == (0 if broken else 1)).all()


def random_pairs(
    norm: Norm, size: int, bounds: tuple[float, float], weights: tuple[float, float], count: int = 50
) -> tuple[Ensemble, Tensor, Tensor, ThreatModel, Tensor, Tensor]:
    """Pairs of linear classifiers, one pair for each image, with boundaries inside the ball or slightly outside.

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
def test_two_linear_members_are_fooled_optimally(
    norm: Norm, size: int, bounds: tuple[float, float], weights: tuple[float, float]
) -> None:
    model, images, labels, threat, lowest, clear = random_pairs(norm, size, bounds, weights)
    assert clear.float().mean() > 0.8
    assert {round(value, 3) for value in lowest[clear].tolist()} >= {0.0, round(min(weights), 3)}

    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded())
    assert threat.contains(found, images).all()
    reached = expected_accuracy(model, found, labels)
    torch.testing.assert_close(reached[clear], lowest[clear], atol=1e-5, rtol=0)

    # As a control, an attack on the mean loss does not reach the optimum for all of these pairs.
    mean = expected_accuracy(model, attack_mean_loss(model, images, labels, threat=threat), labels)
    assert (mean >= lowest - 1e-5)[clear].all()
    assert (mean > lowest + 1e-5)[clear].float().mean() > 0.1


@both_norms
@pytest.mark.parametrize("step_size", [None, 0.1], ids=["default", "short"])
def test_members_with_opposite_gradients(norm: Norm, step_size: float | None) -> None:
    model, images, labels = opposed(norm=norm)
    threat = ThreatModel(0.6, norm, FAR)
    gradients = [value_and_grad(member, images, labels, logit_margin, 1).gradient for member in model.members]
    assert torch.equal(gradients[0], -gradients[1])

    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded(), step_size=step_size)
    assert (expected_accuracy(model, found, labels) == 0.5).all()


def test_mean_loss_fails_with_opposite_gradients() -> None:
    model, images, labels = opposed()
    members = list(model.members)
    assert value_and_grad(members[0], images, labels, logit_margin, 1).gradient.abs().max() > 0.1
    assert value_and_grad(_Mean(members), images, labels, logit_margin, 2).gradient.abs().max() == 0
    found = attack_mean_loss(model, images, labels, threat=ThreatModel(0.6, "Linf", FAR), loss=logit_margin)
    assert (expected_accuracy(model, found, labels) == 1).all()


@both_norms
@pytest.mark.parametrize("heavy", [0, 1])
def test_heaviest_member_is_fooled_first(norm: Norm, heavy: int) -> None:
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


@pytest.mark.longer
@both_norms
def test_large_and_tiny_radius(norm: Norm) -> None:
    images = draw(8, 3, 8, 8)
    for classes in (2, 3, 7):
        first, *others = [linear(classes, seed) for seed in (0, 1, 2)]
        labels = predictions(first, images)
        for other in others:  # similar enough to agree on the clean images
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
def test_nearest_class_is_not_the_likeliest(norm: Norm, nearest: int) -> None:
    # The most likely wrong class is 1, at a distance of 0.5. The nearest is 2, at 0.2, with a steeper gradient.
    class Three(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x, y = images.flatten(1).T
            return torch.stack([0 * x, y - 0.5, 10 * x - 2.0], 1)

    images, labels = torch.zeros(2, 1, 1, 2), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(0.3, norm, FAR)
    model = Ensemble([Three()])
    found = arc(model, images, labels, threat=threat, steps=1, generator=seeded(), nearest=nearest)
    assert (expected_accuracy(model, found, labels) == (0 if nearest == 2 else 1)).all()


def test_steps_become_short_enough_for_a_small_target() -> None:
    # The member errs in a thin shell only, which long steps always miss.
    class Shell(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            moved = images.flatten(1).sum(1)
            score = 0.05 - (moved - 0.6).abs()
            return torch.stack([torch.zeros_like(score), score], 1)

    images, labels = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(1.0, "L2", FAR)
    found = arc(Ensemble([Shell()]), images, labels, threat=threat, steps=12, generator=seeded(), step_size=0.4)
    assert (expected_accuracy(Ensemble([Shell()]), found, labels) == 0).all()


def test_bad_step_is_undone_and_halved() -> None:
    # The first member is fooled from 0.4 to 0.6, but its linear approximation up to 2. The other: from 0.55 on.
    class Score(nn.Module):
        def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.score = score

        def forward(self, images: Tensor) -> Tensor:
            score = self.score(images.flatten(1).sum(1))
            return torch.stack([torch.zeros_like(score), score], 1)

    band = Score(lambda x: torch.where(x < 0.6, 4 * (x - 0.4), -1.0 - 0 * x))
    other = Score(lambda x: x - 0.55)
    model = Ensemble([band, other], [0.6, 0.4])
    images, labels = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(2.0, "L2", FAR)
    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded(), step_size=0.5)
    assert (expected_accuracy(model, found, labels) == 0).all()
