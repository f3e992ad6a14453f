"""HopSkipJump through foolbox: on classifiers with a known minimal perturbation, and with useless scores."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.decision import hop_skip_jump
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import KillGradient, Noisy, Spy, draw, global_state, half_problem, linear, masked, predictions, seeded

pytest.importorskip("foolbox", reason="hop_skip_jump runs through foolbox: pip install 'pytest-gradmask[decision]'")

both_norms = pytest.mark.parametrize("norm", ["Linf", "L2"])
SHAPE = (3, 4, 4)


def broken(model: nn.Module, found: Tensor, labels: Tensor) -> int:
    return int((predictions(model, found) != labels).sum())


@both_norms
@pytest.mark.parametrize("bounds", [(-20.0, 20.0), (-9.0, 30.0)], ids=str)
def test_reachable_images_are_broken(norm: Norm, bounds: tuple[float, float]) -> None:
    model, images, labels = half_problem(3, SHAPE, norm, distance=0.5)
    threat = ThreatModel(1.0, norm, bounds)
    found = hop_skip_jump(model, images, labels, threat=threat, steps=10, generator=seeded(), evaluations=30)
    assert threat.contains(found, images).all()
    assert broken(model, found, labels) == 3


@both_norms
def test_unreachable_images_are_not_broken(norm: Norm) -> None:
    model, images, labels = half_problem(3, SHAPE, norm, distance=1.2)
    threat = ThreatModel(1.0, norm, (-20.0, 20.0))
    found = hop_skip_jump(model, images, labels, threat=threat, steps=5, generator=seeded())
    assert threat.contains(found, images).all()
    assert broken(model, found, labels) == 0


def test_masked_gradients_do_not_matter() -> None:
    model, images = masked(KillGradient), draw(3, 3, 8, 8)
    labels, threat = predictions(model, images), ThreatModel(0.3)
    spy = Spy(model)
    found = hop_skip_jump(spy, images, labels, threat=threat, steps=10, generator=seeded(), evaluations=30)
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
    run = partial(hop_skip_jump, images=images, labels=labels, threat=ThreatModel(1.0, bounds=(-20.0, 20.0)), steps=3)
    assert torch.equal(run(model, generator=seeded()), run(Decisions(model), generator=seeded()))


def test_randomized_defense_ends_the_attack() -> None:
    model, images = Noisy(linear(), 3.0), draw(4, 3, 8, 8)
    labels, threat = predictions(linear(), images), ThreatModel(0.3)
    found = hop_skip_jump(model, images, labels, threat=threat, steps=3, generator=seeded())
    assert threat.contains(found, images).all()


class Constant(nn.Module):
    """Class 0, always."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(2)[torch.zeros(len(images), dtype=torch.long)]


def test_images_without_a_start_are_returned_unchanged() -> None:
    images, labels = draw(4, *SHAPE), torch.tensor([0, 1, 0, 1])
    found = hop_skip_jump(Constant(), images, labels, threat=ThreatModel(0.1), steps=2, generator=seeded())
    assert torch.equal(found, images)


def test_one_image_starts_from_noise() -> None:
    model = linear(classes=10)
    images = draw(1, 3, 8, 8)
    labels = predictions(model, images)
    found = hop_skip_jump(model, images, labels, threat=ThreatModel(0.3), steps=5, generator=seeded())
    assert broken(model, found, labels) == 1


class Strict(nn.Module):
    """Fails with an assertion, as foolbox itself does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        assert self.calls < 10, "mine"
        return linear()(images)  # type: ignore[no-any-return]


def test_exception_of_the_defense_is_passed_on() -> None:
    images = draw(4, 3, 8, 8)
    with pytest.raises(AssertionError, match="mine"):
        hop_skip_jump(
            Strict(), images, predictions(linear(), images), threat=ThreatModel(0.3), steps=5, generator=seeded()
        )


def test_seed_decides_and_nothing_is_changed() -> None:
    model, images = linear().train(), draw(4, 3, 8, 8)
    labels, before, given = predictions(model, images), global_state(), images.clone()
    run = partial(hop_skip_jump, model, images, labels, threat=ThreatModel(0.05), steps=3)
    first = run(generator=seeded(1))
    assert torch.equal(first, run(generator=seeded(1)))
    assert not torch.equal(first, run(generator=seeded(2)))
    assert torch.equal(images, given)
    assert model.training
    assert global_state() == before
