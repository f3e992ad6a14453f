"""ARC: against exact optima on linear members, and where mean gradients lead nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.gradient import look_at, pgd
from pytest_gradmask.attacks.losses import Loss, cross_entropy, margin
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import Detach, Half, Shape, convolutional, draw, half_problem, linear, predictions, seeded

NORMS: list[Norm] = ["Linf", "L2"]
FAR = (-100.0, 100.0)
UNIT = (0.0, 1.0)
both_norms = pytest.mark.parametrize("norm", NORMS)


class Ensemble(nn.Module):
    """Members, and how probable each is; by default all the same."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = [1 / len(members)] * len(members) if weights is None else list(weights)


def expected_accuracy(model: Ensemble, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    right = [
        weight * (predictions(member, images) == labels).float()
        for member, weight in zip(model.members, model.weights, strict=True)
    ]
    return torch.stack(right).sum(0)


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


class Scores(nn.Module):
    """A binary linear classifier for each image of a batch."""

    def __init__(self, weights: torch.Tensor, biases: torch.Tensor) -> None:
        super().__init__()
        self.weights, self.biases = weights, biases

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = (images * self.weights).flatten(1).sum(1) + self.biases
        return torch.stack([-score / 2, score / 2], 1)


def largest_room(normals: np.ndarray, distances: np.ndarray, image: np.ndarray, threat: ThreatModel) -> float:
    """How far beyond the worst of some boundaries a point of the ball and the bounds can be; below 0 if none is."""
    low, high = (bound - image for bound in threat.bounds)
    boundaries, size = np.c_[normals, np.ones(len(normals))], len(image)
    goal = np.r_[np.zeros(size), -1.0]
    if threat.norm == "Linf":
        ball = zip(np.maximum(low, -threat.eps), np.minimum(high, threat.eps), strict=True)
        solved = linprog(goal, A_ub=boundaries, b_ub=-distances, bounds=[*ball, (None, None)])
    else:
        sides = {"type": "ineq", "fun": lambda x: -distances - boundaries @ x, "jac": lambda _: -boundaries}
        within = {
            "type": "ineq",
            "fun": lambda x: threat.eps**2 - x[:-1] @ x[:-1],
            "jac": lambda x: np.r_[-2 * x[:-1], 0.0],
        }
        start, box = np.r_[np.zeros(size), -distances.max()], [*zip(low, high, strict=True), (None, None)]
        solved = minimize(
            lambda x: goal @ x,
            start,
            jac=lambda _: goal,
            bounds=box,
            constraints=[sides, within],
            method="SLSQP",
            options={"maxiter": 200},
        )
    assert solved.success, solved.message
    return float(-solved.fun)


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


def opposed(distance: float = 0.5, norm: Norm = "Linf", count: int = 6) -> tuple[Ensemble, torch.Tensor, torch.Tensor]:
    """Two classifiers with the image half-way between their boundaries: what fools one is all the safer for the other.

    The paper's example of a mean loss that tells nothing.
    """
    member, images, labels = half_problem(count, (1, 4, 4), norm, distance)
    toward = 2.0 * distance * 10 * (2 * labels - 1).float()
    other = Scores(-member.weight.detach().expand_as(images), toward - member.bias)
    return Ensemble([member, other]), images, labels


@both_norms
@pytest.mark.parametrize("step_size", [None, 0.1], ids=["default", "short"])
def test_members_whose_gradients_cancel_do_not_stop_it(norm: Norm, step_size: float | None) -> None:
    model, images, labels = opposed(norm=norm)
    threat = ThreatModel(0.6, norm, FAR)
    gradients = [look_at(member, images, labels, margin, 1).gradient for member in model.members]
    assert torch.equal(gradients[0], -gradients[1])

    found = arc(model, images, labels, threat=threat, steps=20, generator=seeded(), step_size=step_size)
    assert (expected_accuracy(model, found, labels) == 0.5).all()


def test_the_attack_on_the_mean_loss_goes_nowhere_there() -> None:
    model, images, labels = opposed()
    members = list(model.members)
    assert look_at(members[0], images, labels, margin, 1).gradient.abs().max() > 0.1
    assert look_at(_Mean(members), images, labels, margin, 2).gradient.abs().max() == 0
    found = attack_mean_loss(model, images, labels, threat=ThreatModel(0.6, "Linf", FAR), loss=margin)
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


@both_norms
def test_ball_and_bounds_are_kept_and_the_clean_image_where_nothing_is_better(norm: Norm) -> None:
    images = draw(6, 3, 8, 8)
    images[0], images[1] = 0.0, 1.0
    model = Ensemble([convolutional(seed=seed) for seed in (0, 1)])
    labels = predictions(model.members[0], images)
    for eps in (0.001, 0.05, 0.3):
        threat = ThreatModel(eps if norm == "Linf" else 14 * eps, norm)
        found = arc(model, images, labels, threat=threat, steps=5, generator=seeded(), restarts=2)
        assert found.dtype == torch.float32
        assert threat.contains(found, images).all()
        assert (found >= 0).all()
        assert (found <= 1).all()
        before, after = (expected_accuracy(model, points, labels) for points in (images, found))
        assert (after <= before).all()
    # Wrong from the start: nothing to do.
    wrong = torch.full_like(labels, 3)
    wrong[predictions(model.members[0], images) == 3] = 2
    already = Ensemble([model.members[0]])
    assert torch.equal(arc(already, images, wrong, threat=threat, steps=3, generator=seeded()), images)


@both_norms
def test_an_image_does_not_depend_on_the_others(norm: Norm) -> None:
    images = draw(8, 3, 8, 8)
    model = Ensemble([convolutional(seed=seed) for seed in (0, 1, 2)], [0.5, 0.3, 0.2])
    labels = predictions(model.members[0], images)
    run = partial(arc, model, threat=ThreatModel(0.04 if norm == "Linf" else 0.5, norm), steps=8)
    found = run(images, labels, generator=seeded())
    assert not torch.equal(found, images)
    for i in range(8):
        alone = run(images[i : i + 1], labels[i : i + 1], generator=seeded())
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-4, rtol=0)


def test_the_seed_decides_where_it_starts_again_and_nothing_else() -> None:
    # Without any gradient only the starts can find something, and the first is the clean image.
    member, images, labels = half_problem(20, (1, 1, 2), "Linf", distance=0.3)
    model = Ensemble([nn.Sequential(Detach(), member)])
    run = partial(arc, model, images, labels, threat=ThreatModel(0.5, bounds=FAR), steps=1)
    before = torch.get_rng_state()
    assert torch.equal(run(generator=seeded(1)), images)
    assert torch.equal(run(generator=seeded(1), restarts=9), run(generator=seeded(1), restarts=9))
    assert not torch.equal(run(generator=seeded(1), restarts=9), run(generator=seeded(2), restarts=9))
    assert (expected_accuracy(model, run(generator=seeded(1), restarts=300), labels) == 0).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_grad_mode_does_not_matter() -> None:
    images = draw(4, 3, 8, 8)
    model = Ensemble([convolutional(seed=seed) for seed in (0, 1)])
    run = partial(arc, model, images, predictions(model.members[0], images), threat=ThreatModel(0.03), steps=3)
    expected = run(generator=seeded())
    with torch.no_grad():
        found = run(generator=seeded())
    assert torch.equal(found, expected)
    assert not found.requires_grad


class _Poison(torch.autograd.Function):
    """Replaces some pixels' gradient."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, where: torch.Tensor, poison: float) -> torch.Tensor:
        ctx.where, ctx.poison = where, poison
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.where(ctx.where, ctx.poison, gradients[0]), None, None


class Poisoned(nn.Module):
    """A model whose gradient is ``poison`` at some pixels, 1 or N x C x H x W."""

    def __init__(self, model: nn.Module, where: torch.Tensor, poison: float) -> None:
        super().__init__()
        self.model, self.where, self.poison = model, where, poison

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(_Poison.apply(images, self.where, self.poison))  # type: ignore[no-any-return]


@both_norms
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30, 0.0], ids=str)
def test_a_bad_gradient_hurts_its_own_image_only(norm: Norm, poison: float) -> None:
    member, images, labels = half_problem(5, (1, 4, 4), norm, distance=0.5)
    where = torch.zeros_like(images, dtype=torch.bool)
    where[2] = True
    model = Ensemble([Poisoned(member, where, poison), member])
    threat = ThreatModel(0.6, norm, FAR)
    found = arc(model, images, labels, threat=threat, steps=10, generator=seeded())
    assert threat.contains(found, images).all()
    assert (expected_accuracy(model, found, labels)[torch.arange(5) != 2] == 0).all()


@both_norms
@pytest.mark.parametrize("poison", [float("nan"), 0.0], ids=str)
def test_pixels_with_a_nan_gradient_stay_and_the_others_move_on(norm: Norm, poison: float) -> None:
    member, images, labels = half_problem(5, (1, 4, 4), norm, distance=0.5)
    where = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    where[..., 0] = True
    model = Ensemble([Poisoned(member, where, poison)])
    found = arc(model, images, labels, threat=ThreatModel(1.0, norm, FAR), steps=10, generator=seeded())
    assert torch.equal(found[..., 0], images[..., 0])
    assert (expected_accuracy(model, found, labels) == 0).all()


@both_norms
@pytest.mark.parametrize("how", [lambda images: images.detach(), lambda images: 0 * images], ids=["cut", "zero"])
def test_a_member_without_gradient_does_not_keep_it_from_the_other(
    norm: Norm, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    member, images, labels = half_problem(5, (1, 4, 4), norm, distance=0.5)

    class Blind(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            score = how(images).flatten(1).sum(1) * 0 + 2.0 * labels - 1  # always right
            return torch.stack([-score, score], 1)

    model = Ensemble([Blind(), member], [0.6, 0.4])
    found = arc(model, images, labels, threat=ThreatModel(0.6, norm, FAR), steps=10, generator=seeded())
    torch.testing.assert_close(expected_accuracy(model, found, labels), torch.full((5,), 0.6))
    nothing = arc(Ensemble([Blind()]), images, labels, threat=ThreatModel(0.6, norm, FAR), steps=3, generator=seeded())
    assert torch.equal(nothing, images)


def test_points_where_a_member_answers_nan_are_not_kept() -> None:
    member, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.5)

    class Refusing(nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = member(points)
            moved = (points - images).flatten(1).abs().amax(1, keepdim=True) > 0.1
            return torch.where(moved, torch.nan, logits)

    threat = ThreatModel(0.6, bounds=FAR)
    model = Ensemble([Refusing(), member])
    found = arc(model, images, labels, threat=threat, steps=10, generator=seeded())
    assert ((found - images).abs().flatten(1).amax(1) <= 0.1).all()


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


class Counting(nn.Module):
    """Counts forwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.model(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("eps", "calls"), [(0.4, 2 * (7 + 1)), (0.6, 3)], ids=["spent", "early"])
def test_forwards_are_as_documented_and_it_stops_when_all_is_fooled(eps: float, calls: int) -> None:
    member, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.5)
    members = [Counting(member), Counting(member)]
    threat = ThreatModel(eps, bounds=FAR)
    arc(Ensemble(members), images, labels, threat=threat, steps=7, generator=seeded(), restarts=2, step_size=0.3)
    assert [counting.calls for counting in members] == [calls, calls]


@pytest.mark.parametrize(
    ("members", "weights", "arguments", "message"),
    [
        pytest.param(0, [], {}, "members: .* at least 1", id="no-members"),
        pytest.param(2, [1.0], {}, "weights: 1 of them for 2 members", id="length"),
        pytest.param(2, [0.5, 0.6], {}, r"weights=\[0.5, 0.6\]: .* sum 1", id="sum"),
        pytest.param(2, [1.5, -0.5], {}, r"weights=\[1.5, -0.5\]", id="negative"),
        pytest.param(2, [float("nan"), 1.0], {}, r"weights=\[nan, 1.0\]", id="nan"),
        pytest.param(2, [0.5, 0.5], {"steps": 0}, "steps=0: must be at least 1", id="steps"),
        pytest.param(2, [0.5, 0.5], {"nearest": 0}, "nearest=0: must be at least 1", id="nearest"),
        pytest.param(2, [0.5, 0.5], {"restarts": 0}, "restarts=0: must be at least 1", id="restarts"),
        pytest.param(2, [0.5, 0.5], {"step_size": 0.0}, r"step_size=0.0: must be above 0", id="step-size"),
    ],
)
def test_bad_input_is_named(members: int, weights: list[float], arguments: dict[str, Any], message: str) -> None:
    model = Ensemble([Half(torch.ones(1, 2, 2))] * members, weights)
    run: dict[str, Any] = {"steps": 1, **arguments}
    with pytest.raises(InputError, match=message):
        arc(model, draw(1, 1, 2, 2), torch.tensor([0]), threat=ThreatModel(), generator=seeded(), **run)
