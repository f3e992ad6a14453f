"""Step sizes, active images and the returned iterate of PGD and APGD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.threat import Norm, ThreatModel
from tests.attacks.test_pgd import FAR, Attack, both_attacks, both_norms
from tests.toys import Half, Recorder, convolutional, draw, half_problem, oracle, predictions, seeded


@pytest.mark.parametrize(("step_size", "expected"), [(0.05, 0.05), (None, 2.5 * 0.4 / 4)])
def test_step_size_of_pgd(step_size: float | None, expected: float) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=1.0)
    spy = Recorder(model)
    threat = ThreatModel(0.4, bounds=FAR)
    pgd(spy, images, labels, threat=threat, steps=4, generator=seeded(), step_size=step_size)
    assert len(spy.asked) == 5  # one pass for each step, and one for the last iterate
    # Pixels that would leave the ball move less.
    assert (spy.asked[1] - spy.asked[0]).abs().max() == pytest.approx(expected, rel=1e-4)


def test_apgd_halves_its_step_size_without_progress() -> None:
    # The loss decreases behind a kink, so steps across it make no progress.
    class Kink(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = -(images.flatten(1) - 0.51).abs().sum(1)
            return torch.stack([torch.zeros_like(score), score], 1)

    images = torch.full((1, 1, 1, 1), 0.5)
    spy = Recorder(Kink())
    found = apgd(
        spy, images, torch.zeros(1, dtype=torch.int64), threat=ThreatModel(0.3), steps=60, generator=seeded(),
        loss=logit_margin, stop_early=False,
    )  # fmt: skip
    moves = [float((after - before).abs()) for before, after in zip(spy.asked, spy.asked[1:], strict=False)]
    assert max(moves[1:10]) > 0.2
    assert max(moves[-5:]) < 0.02
    assert float(found) == pytest.approx(0.51, abs=0.005)


@both_attacks
def test_fooling_images_are_not_active_any_more(attack: Attack) -> None:
    model = Half(torch.ones(1, 1, 2, 2))
    distances = torch.tensor([0.9, 0.01, 0.35, 0.9, 0.2])
    images = -distances.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    labels, threat = torch.zeros(5, dtype=torch.int64), ThreatModel(0.5, bounds=FAR)
    spy = Recorder(model)
    found = attack(spy, images, labels, threat=threat, steps=40, restarts=2, generator=seeded(), stop_early=True)
    assert predictions(model, found).tolist() == [0, 1, 1, 0, 1]
    assert threat.contains(found, images).all()
    sizes = [len(asked) for asked in spy.asked]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (5, 2)
    # Each of these images is returned as it was when it first fooled the model.
    for index in (1, 2, 4):
        seen = [asked[row] for asked in spy.asked for row in range(len(asked)) if torch.equal(asked[row], found[index])]
        assert len(seen) == 1


@both_attacks
def test_all_images_stay_active_without_stop_early(attack: Attack) -> None:
    model, images, labels = half_problem(5, (1, 4, 4), "Linf", distance=0.01)
    spy, threat = Recorder(model), ThreatModel(0.5, bounds=FAR)
    attack(spy, images[:3], labels[:3], threat=threat, steps=6, restarts=1, generator=seeded(), stop_early=False)
    assert [len(asked) for asked in spy.asked] == [3] * 7


@both_attacks
def test_iterate_that_fools_most_members_is_returned(attack: Attack) -> None:
    class Member(nn.Module):
        def __init__(self, slope: float, level: float) -> None:
            super().__init__()
            self.slope, self.level = slope, level

        def forward(self, images: Tensor) -> Tensor:
            score = self.slope * (images.flatten(1).sum(1) - self.level)
            return torch.stack([torch.zeros_like(score), score], 1)

    # Both are fooled between 0.4 and 0.5 only, but the mean logit margin increases with the image.
    members = [Recorder(Member(10.0, 0.4)), Member(-1.0, 0.5)]
    mixture = oracle(nn.Identity(), members=members, weights=(0.5, 0.5))
    images, labels = torch.full((1, 1, 1, 1), 0.45), torch.zeros(1, dtype=torch.int64)
    found = attack(
        mixture, images, labels, threat=ThreatModel(0.3), steps=4, restarts=8, generator=seeded(), loss=logit_margin,
        stop_early=False,
    )  # fmt: skip
    visited = [float(asked) for asked in members[0].asked]  # type: ignore[union-attr]
    assert max(visited) > 0.6
    assert 0.4 < float(found) < 0.5
    assert float(found) == max(point for point in visited if 0.4 < point < 0.5)


@both_norms
def test_apgd_has_the_iterates_of_upstream(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    # In double precision: with rounding errors, equal losses may count as an increase.
    images, steps, model = draw(16, 3, 8, 8).double(), 60, convolutional().double()
    threat = ThreatModel(0.05 if norm == "Linf" else 0.7, norm)
    start = threat.random_start(images, seeded(1))
    monkeypatch.setattr(ThreatModel, "random_start", lambda *_: start)
    labels = predictions(model, images)
    ours, theirs = Recorder(model), Recorder(model)
    apgd(ours, images, labels, threat=threat, steps=steps, generator=seeded(), stop_early=False)
    upstream = autoattack.upstream("autopgd_base").APGDAttack(theirs, steps, norm, eps=threat.eps, device="cpu")
    upstream.init_hyperparam(images)
    upstream.attack_single_run(images, labels, x_init=start)
    assert len(ours.asked) == len(theirs.asked) == steps + 1
    for step, (one, other) in enumerate(zip(ours.asked, theirs.asked, strict=True)):
        assert torch.allclose(one, other, atol=1e-6), step
