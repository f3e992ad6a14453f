"""RayS on classifiers with a known minimal perturbation, and with useless scores."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.decision import rays
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import (
    Constant,
    KillGradient,
    Noisy,
    Recorder,
    Spy,
    draw,
    global_state,
    half_problem,
    linear,
    masked,
    predictions,
    seeded,
)

SHAPE = (3, 4, 4)
QUERIES = 300


def broken(model: nn.Module, found: Tensor, labels: Tensor) -> int:
    return int((predictions(model, found) != labels).sum())


@pytest.mark.parametrize("bounds", [(-20.0, 20.0), (-9.0, 30.0)], ids=str)
def test_reachable_images_are_broken(bounds: tuple[float, float]) -> None:
    """In the Linf norm the nearest adversarial example of a linear classifier lies on a ray, and RayS gets near."""
    model, images, labels = half_problem(3, SHAPE, "Linf", distance=0.8)
    threat = ThreatModel(1.0, bounds=bounds)
    found = rays(model, images, labels, threat=threat, steps=QUERIES, generator=seeded())
    assert threat.contains(found, images).all()
    assert broken(model, found, labels) == 3


def test_reachable_images_are_broken_in_l2() -> None:
    """The best ray is longer than the minimal perturbation here: pi / 2 times its square root, for normal weights."""
    model, images, labels = half_problem(3, SHAPE, "L2", distance=0.6)
    threat = ThreatModel(1.0, "L2", (-20.0, 20.0))
    found = rays(model, images, labels, threat=threat, steps=QUERIES, generator=seeded())
    assert threat.contains(found, images).all()
    assert broken(model, found, labels) == 3


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_unreachable_images_are_not_broken(norm: Norm) -> None:
    model, images, labels = half_problem(3, SHAPE, norm, distance=1.2)
    threat = ThreatModel(1.0, norm, (-20.0, 20.0))
    found = rays(model, images, labels, threat=threat, steps=QUERIES, generator=seeded())
    assert threat.contains(found, images).all()
    assert broken(model, found, labels) == 0


def test_masked_gradients_do_not_matter() -> None:
    model, images = masked(KillGradient), draw(3, 3, 8, 8)
    labels, threat = predictions(model, images), ThreatModel(0.3)
    spy = Spy(model)
    found = rays(spy, images, labels, threat=threat, steps=QUERIES, generator=seeded())
    assert threat.contains(found, images).all()
    assert broken(model, found, labels) == 3
    assert not any(spy.gradients)


class Decisions(nn.Module):
    """The decisions of a classifier as one-hot scores, which are useless for an attack."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def test_only_decisions_are_used() -> None:
    model, images, labels = half_problem(4, SHAPE, "Linf", distance=0.5)
    run = partial(rays, images=images, labels=labels, threat=ThreatModel(1.0, bounds=(-20.0, 20.0)), steps=50)
    assert torch.equal(run(model, generator=seeded()), run(Decisions(model), generator=seeded()))


def test_images_do_not_influence_each_other() -> None:
    model, images, labels = half_problem(4, SHAPE, "Linf", distance=0.8)
    run = partial(rays, model, threat=ThreatModel(1.0, bounds=(-20.0, 20.0)), steps=100, generator=seeded())
    together = run(images, labels)
    alone = torch.cat([run(images[[index]], labels[[index]]) for index in range(4)])
    torch.testing.assert_close(together, alone)


def test_queries_are_single_images() -> None:
    model, images, labels = half_problem(2, SHAPE, "Linf", distance=5.0)
    threat = ThreatModel(1.0, bounds=(-20.0, 20.0))
    spy = Spy(model)
    rays(spy, images, labels, threat=threat, steps=40, generator=seeded())
    assert spy.counts == [2] * 40
    near, near_labels = half_problem(2, SHAPE, "Linf", distance=0.1)[1:]
    spy = Spy(model)
    rays(spy, near, near_labels, threat=threat, steps=40, generator=seeded())
    assert len(spy.counts) < 40


def test_blocks_of_signs_are_halved() -> None:
    """Of a classifier that says the same everywhere, every ray is asked about once: whole, halves, quarters."""
    recorder = Recorder(Constant(1.0, 0.0))
    images = torch.full((1, 1, 2, 4), 0.5)
    rays(recorder, images, torch.tensor([0]), threat=ThreatModel(0.1), steps=10, generator=seeded())
    signs = [each[0, 0].flatten().mul(2).sub(1).int().tolist() for each in recorder.asked]
    assert signs[:4] == [[1] * 8, [-1] * 8, [-1] * 4 + [1] * 4, [1] * 4 + [-1] * 4]
    assert signs[4] == [-1] * 2 + [1] * 6
    assert signs[8] == [-1] + [1] * 7


def test_images_without_a_misclassified_point() -> None:
    """Images without a misclassified point are returned unchanged."""
    images, labels = draw(4, *SHAPE), torch.zeros(4, dtype=torch.long)
    found = rays(Constant(1.0, 0.0), images, labels, threat=ThreatModel(0.1), steps=30, generator=seeded())
    assert torch.equal(found, images)


def test_randomized_defense_is_no_error() -> None:
    model, images = Noisy(linear(), 3.0), draw(4, 3, 8, 8)
    threat = ThreatModel(0.3)
    found = rays(model, images, predictions(linear(), images), threat=threat, steps=50, generator=seeded())
    assert threat.contains(found, images).all()


def test_exception_of_the_defense_is_passed_on() -> None:
    class Strict(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError(f"mine: {len(images)}")

    images = draw(4, 3, 8, 8)
    with pytest.raises(ValueError, match="mine"):
        rays(Strict(), images, predictions(linear(), images), threat=ThreatModel(0.3), steps=5, generator=seeded())


def test_nothing_is_random_and_nothing_is_changed() -> None:
    model, images = linear().train(), draw(4, 3, 8, 8)
    labels, before, given = predictions(model, images), global_state(), images.clone()
    run = partial(rays, model, images, labels, threat=ThreatModel(0.05), steps=60)
    assert torch.equal(run(generator=seeded(1)), run(generator=seeded(2)))
    assert torch.equal(images, given)
    assert model.training
    assert global_state() == before
