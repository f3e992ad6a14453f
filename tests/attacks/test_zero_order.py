"""Zero-order PGD: no gradient, one image at a time."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask.attacks.losses import cross_entropy
from pytest_gradmask.attacks.zero_order import _projection, zero_order
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import Detach, Half, Quantize, Recorder, Spy, draw, half_problem, linear, oracle, predictions, seeded

FAR = (-100.0, 100.0)
NORMS: list[Norm] = ["Linf", "L2"]
both_norms = pytest.mark.parametrize("norm", NORMS)


@both_norms
@pytest.mark.parametrize("count", [1, 6])
def test_images_break_exactly_above_their_boundary_distance(norm: Norm, count: int) -> None:
    model, images, labels = half_problem(count, (1, 3, 3), norm, distance=0.5)
    run = partial(zero_order, model, images, labels, steps=40, pairs=20, cell=1)
    for eps, broken in ((0.5 * 1.1, True), (0.5 * 0.999, False)):
        threat = ThreatModel(eps, norm, FAR)
        found = run(threat=threat, generator=seeded())
        assert threat.contains(found, images).all()
        assert ((predictions(model, found) != labels) == broken).all()


@both_norms
def test_cells_need_fewer_queries(norm: Norm) -> None:
    # All pixels have the same weight, so a single cell of 8 x 8 is enough.
    model, images = Half(torch.ones(1, 8, 8)), torch.randn(10, 1, 8, 8, generator=seeded())
    labels = predictions(model, images)
    dual = 64 if norm == "Linf" else 8
    threat = ThreatModel(1.2 * float(model.score(images).abs().max().detach()) / dual, norm, FAR)
    run = partial(zero_order, model, images, labels, threat=threat, steps=5, pairs=1)
    broken = {cell: int((predictions(model, run(cell=cell, generator=seeded())) != labels).sum()) for cell in (1, 8)}
    assert broken[1] < broken[8] == 10


def directions_asked(spy: Recorder, pairs: int) -> list[Tensor]:
    """For each step, the directions of its pairs, N x P x D; for attacks on 4 images that none of them breaks."""
    steps = [spy.asked[start : start + pairs] for start in range(1, len(spy.asked) - 1, pairs + 1)]
    return [torch.stack([(asked[:4] - asked[4:]).flatten(1) for asked in step], 1) for step in steps]


def test_the_last_estimate_is_the_prior() -> None:
    """Of a linear model, the gradient is everywhere the same: each estimate adds to what those before it know."""
    model, images, labels = half_problem(4, (1, 8, 8), "L2", distance=1.0)
    spy, threat = Recorder(model), ThreatModel(0.1, "L2", FAR)
    zero_order(spy, images, labels, threat=threat, steps=20, pairs=7, cell=1, generator=seeded(1))
    gradient = (1 - 2 * labels)[:, None] * model.weight.detach().flatten()
    asked = directions_asked(spy, 7)
    cosines = [functional.cosine_similarity(step[:, 0], gradient, dim=1) for step in asked]
    assert float(cosines[0].abs().max()) < 0.5  # noise
    assert all((after > before - 1e-3).all() for before, after in pairwise(cosines[1:]))
    assert float(cosines[-1].min()) > 0.8
    others = torch.cat([functional.cosine_similarity(step[:, 1:], gradient[:, None], dim=2) for step in asked])
    assert float(others.abs().mean()) < 0.2  # control: the other pairs stay noise


def test_a_single_pair_goes_along_noise() -> None:
    model, images, labels = half_problem(4, (1, 8, 8), "L2", distance=1.0)
    spy, threat = Recorder(model), ThreatModel(0.1, "L2", FAR)
    zero_order(spy, images, labels, threat=threat, steps=5, pairs=1, cell=1, generator=seeded(1))
    first, *later = directions_asked(spy, 1)
    assert all(functional.cosine_similarity(first, each, dim=2).abs().max() < 0.6 for each in later)


@pytest.mark.parametrize("pairs", [1, 5, 12, 40])
def test_projection_onto_the_span(pairs: int) -> None:
    """With as many directions as dimensions, or more, it is the gradient itself."""
    directions, gradient = (
        torch.randn(3, pairs, 3, 2, 2, generator=seeded()),
        torch.randn(3, 3, 2, 2, generator=seeded(1)),
    )
    differences = (directions * gradient[:, None]).flatten(2).sum(2)
    found = _projection(directions, differences)
    torch.testing.assert_close(found.square().flatten(1).mean(1), torch.ones(3))
    span, _ = torch.linalg.qr(directions.flatten(2).mT)
    expected = (span @ span.mT @ gradient.flatten(1)[:, :, None])[:, :, 0]
    cosine = functional.cosine_similarity(found.flatten(1), expected if pairs < 12 else gradient.flatten(1), dim=1)
    torch.testing.assert_close(cosine, torch.ones(3))


def test_projection_of_odd_directions() -> None:
    """Projection of what depends on each other or is no number."""
    directions = torch.randn(4, 6, 1, 4, 4, generator=seeded())
    directions[:, 1] = directions[:, 0]
    differences = torch.ones(4, 6)
    differences[1, 2], differences[2, 3], differences[3] = torch.nan, torch.inf, 0
    found = _projection(directions, differences)
    assert found.isfinite().all()
    assert found[:3].flatten(1).any(1).all()
    assert not found[3].any()


@pytest.mark.parametrize("front", [Quantize(), Detach()], ids=["quantized", "detached"])
def test_masked_gradients_do_not_matter(front: nn.Module) -> None:
    model, images = nn.Sequential(front, linear()), draw(8, 3, 8, 8)
    labels = predictions(model, images)
    run = partial(zero_order, model, images, labels, threat=ThreatModel(0.3), steps=20)
    assert (predictions(model, run(pairs=30, cell=1, generator=seeded())) != labels).all()


def test_no_gradient_is_taken() -> None:
    model, images = linear(), draw(3, 3, 8, 8)
    spy = Spy(model)
    target = oracle(spy)
    zero_order(target, images, predictions(model, images), threat=ThreatModel(0.1), steps=3, generator=seeded())
    assert spy.gradients
    assert not any(spy.gradients)
    assert target.backwards == 0


@pytest.mark.parametrize(("steps", "pairs"), [(1, 1), (4, 3), (7, 10)])
def test_number_of_queries(steps: int, pairs: int) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=1.0)
    target = oracle(model)
    threat = ThreatModel(0.1, bounds=FAR)  # too small to break any, so that it does not stop early
    zero_order(target, images, labels, threat=threat, steps=steps, pairs=pairs, generator=seeded())
    assert target.forwards == 5 * (steps * (2 * pairs + 1) + 1)


def test_stops_when_every_image_is_broken() -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.01)
    target = oracle(model)
    zero_order(target, images, 1 - labels, threat=ThreatModel(0.1, bounds=FAR), steps=50, generator=seeded())
    assert target.forwards == 5


def test_broken_image_is_not_active_any_more() -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.3)
    spy, threat = Recorder(model), ThreatModel(0.5, bounds=FAR)
    labels[1] = 1 - labels[1]  # misclassified from the start
    run = partial(zero_order, threat=threat, steps=6, pairs=5)
    found = run(spy, images, labels, generator=seeded())
    assert torch.equal(found[1], images[1])
    assert [len(asked) for asked in spy.asked[:7]] == [5] + [2 * 4] * 5 + [4]
    labels[1] = 1 - labels[1]
    others = [0, 2, 3, 4]
    assert torch.equal(run(model, images, labels, generator=seeded())[others], found[others])


def test_randomized_defense_keeps_broken_images_active() -> None:
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

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        logits[images[:, 0, 0, 0] > 5, 0] *= self.value
        return logits


@both_norms
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 0.0], ids=str)
def test_bad_loss_affects_one_image_only(norm: Norm, value: float) -> None:
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
        def forward(self, images: Tensor) -> Tensor:
            assert images.min() >= 0
            assert images.max() <= 1
            return linear()(images)  # type: ignore[no-any-return]

    images = draw(4, 3, 8, 8).round()
    labels = predictions(Strict(), images)
    zero_order(Strict(), images, labels, threat=ThreatModel(0.3), steps=3, generator=seeded())


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2, 4, 6)], ids=str)
def test_image_sizes(shape: tuple[int, int, int]) -> None:
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
