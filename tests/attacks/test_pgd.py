"""PGD and APGD: on classifiers with a known minimal perturbation, and with bad gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.losses import Loss, cross_entropy, dlr, logit_margin
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import Detach, Half, Shape, convolutional, draw, half_problem, oracle, predictions, seeded

Attack = Callable[..., Tensor]

NORMS: list[Norm] = ["Linf", "L2"]
ATTACKS = [pytest.param(pgd, id="pgd"), pytest.param(apgd, id="apgd")]
FAR = (-100.0, 100.0)
both_attacks = pytest.mark.parametrize("attack", ATTACKS)
both_norms = pytest.mark.parametrize("norm", NORMS)


@both_attacks
@both_norms
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 4, 4), (3, 16, 16)], ids=str)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("loss", [cross_entropy, logit_margin], ids=["ce", "margin"])
def test_images_break_exactly_above_their_boundary_distance(
    attack: Attack, norm: Norm, shape: Shape, count: int, loss: Loss
) -> None:
    model, images, labels = half_problem(count, shape, norm, distance=0.5)
    for eps, broken in ((0.5 * 1.05, True), (0.5 * 0.999, False)):
        threat = ThreatModel(eps, norm, FAR)
        found = attack(model, images, labels, threat=threat, steps=60, generator=seeded(), loss=loss)
        assert threat.contains(found, images).all()
        assert ((predictions(model, found) != labels) == broken).all()


@both_attacks
def test_the_bounds_are_kept(attack: Attack) -> None:
    model = Half(torch.ones(1, 2, 2))
    images = torch.tensor([0.0, 0.2, 0.9, 1.0]).view(1, 1, 2, 2)
    threat = ThreatModel(0.3)
    found = attack(model, images, torch.tensor([0]), threat=threat, steps=20, generator=seeded(), stop_early=False)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.3, 0.5, 1.0, 1.0]))


class Fickle(nn.Module):
    """Answers as its model for a number of forward passes, and with the labels afterwards."""

    def __init__(self, model: nn.Module, labels: Tensor, patience: int) -> None:
        super().__init__()
        self.model, self.labels, self.patience = model, labels, patience

    def forward(self, images: Tensor) -> Tensor:
        self.patience -= 1
        logits: Tensor = self.model(images)
        return logits if self.patience >= 0 else 0 * logits + 9 * nn.functional.one_hot(self.labels, 2)


@pytest.mark.parametrize(
    "attack",
    [pytest.param(partial(pgd, step_size=0.3), id="pgd"), pytest.param(partial(apgd, stop_early=False), id="apgd")],
)
@both_norms
def test_best_iterate_is_returned_not_the_last(attack: Attack, norm: Norm) -> None:
    model, images, labels = half_problem(6, (1, 4, 4), norm, distance=0.3)
    fickle = Fickle(model, labels, patience=8)
    found = attack(fickle, images, labels, threat=ThreatModel(1.0, norm, FAR), steps=10, generator=seeded())
    assert fickle.patience < 0
    assert (predictions(model, found) != labels).all()


@both_attacks
def test_the_seed_decides(attack: Attack) -> None:
    model, images = convolutional(), draw(4, 3, 8, 8)
    run = partial(attack, model, images, predictions(model, images), threat=ThreatModel(0.03), steps=3)
    assert torch.equal(run(generator=seeded(1)), run(generator=seeded(1)))
    assert not torch.equal(run(generator=seeded(1)), run(generator=seeded(2)))


@both_attacks
def test_the_callers_grad_mode_does_not_matter(attack: Attack) -> None:
    model, images = convolutional(), draw(4, 3, 8, 8)
    run = partial(attack, model, images, predictions(model, images), threat=ThreatModel(0.03), steps=3)
    expected = run(generator=seeded())
    with torch.no_grad():
        found = run(generator=seeded())
    assert torch.equal(found, expected)
    assert not found.requires_grad


@both_attacks
def test_global_generators_are_not_used(attack: Attack) -> None:
    model, images = convolutional(), draw(4, 3, 8, 8)
    before = torch.get_rng_state()
    attack(model, images, predictions(model, images), threat=ThreatModel(0.03), steps=3, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


class _Poison(torch.autograd.Function):
    """Replaces the gradient of the images that are marked by a bright first pixel."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, images: Tensor, poison: float) -> Tensor:
        ctx.marked, ctx.poison = images[:, 0, 0, 0] > 5, poison  # type: ignore[attr-defined]
        return images.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        marked = ctx.marked.view(-1, 1, 1, 1)  # type: ignore[attr-defined]
        return torch.where(marked, ctx.poison, gradients[0]), None  # type: ignore[attr-defined]


class Poisoned(nn.Module):
    """A model whose gradient is ``poison`` at marked images."""

    def __init__(self, model: nn.Module, poison: float) -> None:
        super().__init__()
        self.model, self.poison = model, poison

    def forward(self, images: Tensor) -> Tensor:
        return self.model(_Poison.apply(images, self.poison))  # type: ignore[no-any-return]


@both_attacks
@both_norms
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30, 0.0], ids=str)
def test_bad_gradient_affects_one_image_only(attack: Attack, norm: Norm, poison: float) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), norm, distance=1.0)
    marked = images.clone()
    marked[2, 0, 0, 0] = 10
    threat = ThreatModel(0.9, norm, FAR)  # too small to break any, so that no attack stops early
    run = partial(attack, Poisoned(model, poison), labels=labels, threat=threat, steps=10)
    healthy, found = run(images, generator=seeded()), run(marked, generator=seeded())
    assert threat.contains(found, marked).all()
    others = torch.arange(5) != 2
    assert torch.equal(found[others], healthy[others])


@both_attacks
@both_norms
def test_pixels_with_a_nan_gradient_stay(attack: Attack, norm: Norm) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), norm, distance=0.5)

    class Hole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            # The root has no derivative at zero, and 0 times infinity is NaN.
            root = (images - images.detach())[:, 0, 0, :1].abs().sqrt()
            logits: Tensor = model(images) + root
            return logits

    threat = ThreatModel(1.0, norm, FAR)
    found = attack(Hole(), images, labels, threat=threat, steps=40, generator=seeded())
    assert threat.contains(found, images).all()
    assert (predictions(model, found) != labels).all()


@both_attacks
def test_nan_logits_are_not_kept(attack: Attack) -> None:
    images, labels = draw(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])

    class Refusing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), torch.nan) + 0 * images.flatten(1).sum(1, keepdim=True)

    found = attack(Refusing(), images, labels, threat=ThreatModel(0.3), steps=5, generator=seeded())
    assert torch.equal(found, images)


class Alternating(nn.Module):
    """Two classifiers in turn. Their mean is ``model``, but their gradients have other directions."""

    def __init__(self, model: Half, astray: Tensor) -> None:
        super().__init__()
        self.members = [Half(model.weight + sign * astray, model.bias) for sign in (1, -1)]
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.members[self.calls % 2](images)  # type: ignore[no-any-return]


@both_attacks
def test_eot_follows_the_mean_gradient(attack: Attack) -> None:
    model, images, labels = half_problem(6, (1, 4, 4), "Linf", distance=1.0)
    threat = ThreatModel(0.5, bounds=FAR)
    astray = 50 * torch.randn(1, 4, 4, generator=seeded(1))
    corner = images - threat.eps * (2 * labels - 1).view(-1, 1, 1, 1) * model.weight.sign()
    for eot, reached in ((2, True), (1, False)):
        defense = Alternating(model, astray)
        found = attack(
            defense, images, labels, threat=threat, steps=20, generator=seeded(), loss=logit_margin, eot=eot
        ).detach()
        assert torch.allclose(found, corner, atol=1e-4) == reached


def test_eot_keeps_the_iterate_with_the_best_mean() -> None:
    seen: list[Tensor] = []
    logit_margins = [-9.0, 5.0, -1.0, -1.0, -9.0, 5.0]  # of the forward passes, two for each iterate

    class Scripted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = logit_margins[len(seen)] + (images - images.detach()).flatten(1).sum(1)
            seen.append(images.detach().clone())
            return torch.stack([torch.zeros_like(score), score], 1)

    images, labels = draw(1, 1, 4, 4), torch.tensor([0])
    found = pgd(Scripted(), images, labels, threat=ThreatModel(0.1), steps=2, generator=seeded(), eot=2)
    assert not torch.equal(seen[1], seen[3])
    assert torch.equal(found, seen[3])


@both_norms
def test_apgd_closes_in_on_a_small_target(norm: Norm) -> None:
    # Steps of a fixed size would always miss it.
    images = torch.zeros(4, 1, 4, 4)
    target = 0.3 * torch.randn(images.shape, generator=seeded(1)).clamp(-1, 1)

    class Hidden(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = 0.05 - (images - target).flatten(1).norm(dim=1)
            return torch.stack([torch.zeros_like(score), score], 1)

    threat = ThreatModel(1.0 if norm == "Linf" else 2.0, norm, FAR)
    labels = torch.zeros(4, dtype=torch.int64)
    found = apgd(
        Hidden(), images, labels, threat=threat, steps=200, generator=seeded(), loss=logit_margin, stop_early=False
    )
    assert (predictions(Hidden(), found) == 1).all()


class AllBright(torch.autograd.Function):
    """One where all pixels are bright, else zero. The gradient is that of the first dark pixel alone."""

    @staticmethod
    def forward(ctx: Any, points: Tensor) -> Tensor:
        dark = points.flatten(1) < 0.9
        ctx.save_for_backward((dark & (dark.cumsum(1) == 1)).float().view_as(points))
        return (~dark.any(1)).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view(-1, 1, 1, 1) * ctx.saved_tensors[0]  # type: ignore[no-any-return]


def test_apgd_on_a_flat_loss() -> None:
    class Patient(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return torch.stack([torch.full((len(points),), 0.5), AllBright.apply(points)], 1)

    images, labels = torch.zeros(4, 1, 4, 5), torch.zeros(4, dtype=torch.int64)
    found = apgd(Patient(), images, labels, threat=ThreatModel(1.0, "Linf", FAR), steps=100, generator=seeded())
    assert (predictions(Patient(), found) == 1).all(), "a change of one pixel changes nothing, and is to be kept"


@pytest.mark.parametrize("eot", [1, 3])
def test_number_of_passes(eot: int) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=1.0)
    run: dict[str, Any] = {
        "labels": labels,
        "threat": ThreatModel(0.5, bounds=FAR),
        "steps": 7,
        "restarts": 2,
        "eot": eot,
    }
    attacks: list[tuple[Attack, int]] = [(pgd, 0), (apgd, 1)]
    for attack, last in attacks:
        target = oracle(model)
        attack(target, images, generator=seeded(), **run)
        assert target.backwards == 5 * 2 * eot * (7 + last)
        assert target.forwards == 5 * 2 * eot * (7 + 1)


def test_apgd_stops_early_by_default() -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.01)
    run: dict[str, Any] = {"threat": ThreatModel(0.5, bounds=FAR), "steps": 40, "restarts": 2}
    spent = []
    ways: list[dict[str, Any]] = [{}, {"stop_early": False}]
    for settings in ways:
        target = oracle(model)
        found = apgd(target, images, labels, generator=seeded(), **run, **settings)
        spent.append(target.backwards)
        assert (predictions(model, found) != labels).all()
    assert spent[0] < 5 * 41
    assert spent[1] == 2 * 5 * 41


@both_attacks
def test_restarts_break_more_images(attack: Attack) -> None:
    # Without a gradient, only random starts can break an image.
    model, images, labels = half_problem(20, (1, 1, 2), "Linf", distance=0.3)
    defense = oracle(nn.Sequential(Detach(), model))
    run = partial(attack, defense, images, labels, threat=ThreatModel(0.5, bounds=FAR), steps=1)
    broken = [
        int((predictions(model, run(restarts=restarts, generator=seeded())) != labels).sum()) for restarts in (1, 300)
    ]
    assert broken[0] < broken[1] == 20


@both_norms
@pytest.mark.parametrize(
    ("loss", "theirs"),
    [pytest.param(cross_entropy, autoattack.apgd_ce, id="ce"), pytest.param(dlr, autoattack.apgd_dlr, id="dlr")],
)
@pytest.mark.parametrize("eps", [0.01, 0.03])
def test_apgd_is_as_strong_as_upstream(norm: Norm, loss: Loss, theirs: Attack, eps: float) -> None:
    model, images = convolutional(), draw(80, 3, 8, 8)
    labels = predictions(model, images)
    threat = ThreatModel(eps * (1 if norm == "Linf" else 192**0.5), norm)
    run: dict[str, Any] = {"threat": threat, "steps": 30}
    ours = apgd(model, images, labels, loss=loss, generator=seeded(), **run)
    upstream = theirs(model, images, labels, generator=seeded(), **run)
    counts = [int((predictions(model, found) == labels).sum()) for found in (ours, upstream)]
    assert abs(counts[0] - counts[1]) <= 4
