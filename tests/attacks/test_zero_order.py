"""Zero-order PGD: no gradient, one image at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pytest_gradmask.attacks.losses import cross_entropy
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import Detach, Half, Quantize, Recorder, Spy, draw, half_problem, linear, oracle, predictions, seeded

FAR = (-100.0, 100.0)
NORMS: list[Norm] = ["Linf", "L2"]
both_norms = pytest.mark.parametrize("norm", NORMS)


@both_norms
@pytest.mark.parametrize("count", [1, 6])
def test_just_above_the_distance_of_the_boundary_every_image_falls_just_below_none(norm: Norm, count: int) -> None:
    model, images, labels = half_problem(count, (1, 3, 3), norm, distance=0.5)
    run = partial(zero_order, model, images, labels, steps=40, pairs=20, cell=1)
    for eps, broken in ((0.5 * 1.1, True), (0.5 * 0.999, False)):
        threat = ThreatModel(eps, norm, FAR)
        found = run(threat=threat, generator=seeded())
        assert threat.contains(found, images).all()
        assert ((predictions(model, found) != labels) == broken).all()


@both_norms
def test_noise_on_cells_finds_low_frequencies_in_few_queries(norm: Norm) -> None:
    # All pixels matter alike, so that one cell of 8 x 8 leaves a single dimension to search.
    model, images = Half(torch.ones(1, 8, 8)), torch.randn(10, 1, 8, 8, generator=seeded())
    labels = predictions(model, images)
    dual = 64 if norm == "Linf" else 8
    threat = ThreatModel(1.2 * float(model.score(images).abs().max().detach()) / dual, norm, FAR)
    run = partial(zero_order, model, images, labels, threat=threat, steps=5, pairs=1)
    broken = {cell: int((predictions(model, run(cell=cell, generator=seeded())) != labels).sum()) for cell in (1, 8)}
    assert broken[1] < broken[8] == 10


@pytest.mark.parametrize("front", [Quantize(), Detach()], ids=["quantized", "detached"])
def test_masked_gradients_do_not_stop_it(front: nn.Module) -> None:
    model, images = nn.Sequential(front, linear()), draw(8, 3, 8, 8)
    labels = predictions(model, images)
    run = partial(zero_order, model, images, labels, threat=ThreatModel(0.3), steps=20)
    assert (predictions(model, run(pairs=30, cell=1, generator=seeded())) != labels).all()


def test_no_gradient_is_ever_asked_for() -> None:
    model, images = linear(), draw(3, 3, 8, 8)
    spy = Spy(model)
    target = oracle(spy)
    zero_order(target, images, predictions(model, images), threat=ThreatModel(0.1), steps=3, generator=seeded())
    assert spy.gradients
    assert not any(spy.gradients)
    assert target.backwards == 0


@pytest.mark.parametrize(("steps", "pairs"), [(1, 1), (4, 3), (7, 10)])
def test_as_many_queries_as_documented(steps: int, pairs: int) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=1.0)
    target = oracle(model)
    threat = ThreatModel(0.1, bounds=FAR)  # too small to break any, so that it does not stop early
    zero_order(target, images, labels, threat=threat, steps=steps, pairs=pairs, generator=seeded())
    assert target.forwards == 5 * (steps * (2 * pairs + 1) + 1)


def test_it_stops_once_every_image_has_fallen() -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.01)
    target = oracle(model)
    zero_order(target, images, 1 - labels, threat=ThreatModel(0.1, bounds=FAR), steps=50, generator=seeded())
    assert target.forwards == 5


def test_an_image_that_has_fallen_is_left_and_makes_no_difference_to_others() -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.3)
    spy, threat = Recorder(model), ThreatModel(0.5, bounds=FAR)
    labels[1] = 1 - labels[1]  # it has fallen from the start
    run = partial(zero_order, threat=threat, steps=6, pairs=5)
    found = run(spy, images, labels, generator=seeded())
    assert torch.equal(found[1], images[1])
    assert [len(asked) for asked in spy.asked[:7]] == [5] + [2 * 4] * 5 + [4]
    labels[1] = 1 - labels[1]
    others = [0, 2, 3, 4]
    assert torch.equal(run(model, images, labels, generator=seeded())[others], found[others])


def test_an_image_of_a_randomized_defense_is_followed_until_all_have_fallen() -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.3)
    spy = Recorder(model)
    labels[1] = 1 - labels[1]
    zero_order(spy, images, labels, threat=ThreatModel(0.01, bounds=FAR), steps=3, pairs=1, eot=2, generator=seeded())
    assert {len(asked) for asked in spy.asked} == {5, 10}


class Marked(nn.Module):
    """Adds ``value`` to the first logit of images that are marked by a bright first pixel."""

    def __init__(self, model: nn.Module, value: float) -> None:
        super().__init__()
        self.model, self.value = model, value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images)
        logits[images[:, 0, 0, 0] > 5, 0] *= self.value
        return logits


@both_norms
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 0.0], ids=str)
def test_a_wild_loss_hurts_its_own_image_only(norm: Norm, value: float) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), norm, distance=1.0)
    marked = images.clone()
    marked[2, 0, 0, 0] = 10
    threat = ThreatModel(0.9, norm, FAR)
    run = partial(zero_order, Marked(model, value), labels=labels, threat=threat, steps=5, cell=1)
    healthy, found = run(images, generator=seeded()), run(marked, generator=seeded())
    assert threat.contains(found, marked).all()
    others = torch.arange(5) != 2
    assert torch.equal(found[others], healthy[others])


def test_queries_stay_in_the_bounds() -> None:
    class Strict(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.min() >= 0
            assert images.max() <= 1
            return linear()(images)  # type: ignore[no-any-return]

    images = draw(4, 3, 8, 8).round()
    labels = predictions(Strict(), images)
    zero_order(Strict(), images, labels, threat=ThreatModel(0.3), steps=3, generator=seeded())


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2, 4, 6)], ids=str)
def test_any_image_size_will_do(shape: tuple[int, int, int]) -> None:
    model, images = linear(shape=shape), draw(3, *shape)
    threat = ThreatModel(0.1)
    found = zero_order(model, images, predictions(model, images), threat=threat, steps=2, generator=seeded())
    assert threat.contains(found, images).all()


def test_the_seed_decides() -> None:
    model, images = linear(), draw(4, 3, 8, 8)
    run = partial(zero_order, model, images, predictions(model, images), threat=ThreatModel(0.01), steps=3)
    first = run(generator=seeded(1), loss=cross_entropy)
    assert torch.equal(first, run(generator=seeded(1), loss=cross_entropy))
    assert not torch.equal(first, run(generator=seeded(2), loss=cross_entropy))
