"""ARC: ball and bounds, independence of images, bad gradients, number of passes, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import Norm, ThreatModel
from tests.attacks.ensemble_toys import FAR, Ensemble, both_norms, expected_accuracy
from tests.toys import Detach, Half, convolutional, draw, half_problem, predictions, seeded


@both_norms
def test_ball_and_bounds(norm: Norm) -> None:
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
    # Misclassified clean images are returned unchanged.
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


def test_seed_decides_the_restarts_only() -> None:
    # Without a gradient, only random starts can break an image, and the first start is the clean image.
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
    """Replaces the gradient of some pixels."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, where: Tensor, poison: float) -> Tensor:
        ctx.where, ctx.poison = where, poison
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.where(ctx.where, ctx.poison, gradients[0]), None, None


class Poisoned(nn.Module):
    """A model whose gradient is ``poison`` at some pixels, 1 or N x C x H x W."""

    def __init__(self, model: nn.Module, where: Tensor, poison: float) -> None:
        super().__init__()
        self.model, self.where, self.poison = model, where, poison

    def forward(self, images: Tensor) -> Tensor:
        return self.model(_Poison.apply(images, self.where, self.poison))  # type: ignore[no-any-return]


@both_norms
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30, 0.0], ids=str)
def test_bad_gradient_affects_one_image_only(norm: Norm, poison: float) -> None:
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
def test_pixels_with_a_nan_gradient_stay(norm: Norm, poison: float) -> None:
    member, images, labels = half_problem(5, (1, 4, 4), norm, distance=0.5)
    where = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    where[..., 0] = True
    model = Ensemble([Poisoned(member, where, poison)])
    found = arc(model, images, labels, threat=ThreatModel(1.0, norm, FAR), steps=10, generator=seeded())
    assert torch.equal(found[..., 0], images[..., 0])
    assert (expected_accuracy(model, found, labels) == 0).all()


@both_norms
@pytest.mark.parametrize("how", [lambda images: images.detach(), lambda images: 0 * images], ids=["cut", "zero"])
def test_member_without_gradient(norm: Norm, how: Callable[[Tensor], Tensor]) -> None:
    member, images, labels = half_problem(5, (1, 4, 4), norm, distance=0.5)

    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = how(images).flatten(1).sum(1) * 0 + 2.0 * labels - 1  # always correct
            return torch.stack([-score, score], 1)

    model = Ensemble([Blind(), member], [0.6, 0.4])
    found = arc(model, images, labels, threat=ThreatModel(0.6, norm, FAR), steps=10, generator=seeded())
    torch.testing.assert_close(expected_accuracy(model, found, labels), torch.full((5,), 0.6))
    nothing = arc(Ensemble([Blind()]), images, labels, threat=ThreatModel(0.6, norm, FAR), steps=3, generator=seeded())
    assert torch.equal(nothing, images)


def test_points_with_nan_logits_are_not_kept() -> None:
    member, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.5)

    class Refusing(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = member(points)
            moved = (points - images).flatten(1).abs().amax(1, keepdim=True) > 0.1
            return torch.where(moved, torch.nan, logits)

    threat = ThreatModel(0.6, bounds=FAR)
    model = Ensemble([Refusing(), member])
    found = arc(model, images, labels, threat=threat, steps=10, generator=seeded())
    assert ((found - images).abs().flatten(1).amax(1) <= 0.1).all()


class Counting(nn.Module):
    """Counts its forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.model(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("eps", "calls"), [(0.4, 2 * (7 + 1)), (0.6, 3)], ids=["spent", "early"])
def test_number_of_forwards(eps: float, calls: int) -> None:
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
