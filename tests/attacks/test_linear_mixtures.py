"""Randomized ensembles of two linear classifiers, where the lowest expected accuracy in the ball is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.pgd import apgd
from pytest_gradmask.attacks.protocol import AttackFunction
from pytest_gradmask.loading.models.composites import Mixture, RandomizedEnsemble
from pytest_gradmask.randomized.prediction import Sampler
from pytest_gradmask.threat import Norm, ThreatModel
from tests.attacks.ensemble_toys import largest_room
from tests.toys import Half, oracle, seeded

FAR = (-100.0, 100.0)
IMAGE, LABEL = torch.zeros(1, 1, 1, 2), torch.tensor([0])

angles = st.floats(0, 2 * np.pi)
distances = st.floats(0.1, 2.0)
shares = st.floats(0.1, 0.9)
norms = st.sampled_from(["Linf", "L2"])

ATTACKS: dict[str, AttackFunction] = {
    "expected loss": partial(apgd, steps=20),
    "joint margins": partial(apgd, steps=20, loss=joint_margins),
    "member by member": partial(member_by_member, steps=20),
    "arc": partial(arc, steps=10),
}


class Pair:
    """Two linear members that classify the origin correctly, with boundaries at given distances in given directions."""

    def __init__(self, directions: tuple[float, float], away: tuple[float, float], share: float, norm: Norm) -> None:
        self.weights = (share, 1 - share)
        self.normals = np.array([[np.cos(angle), np.sin(angle)] for angle in directions])
        dual = np.abs(self.normals).sum(1) if norm == "Linf" else np.ones(2)
        self.biases = np.array(away) * dual
        self.members: list[nn.Module] = [
            Half(torch.tensor(normal, dtype=torch.float32).view(1, 1, 2), float(-bias))
            for normal, bias in zip(self.normals, self.biases, strict=True)
        ]
        self.threat = ThreatModel(1.0, norm, FAR)

    def optimum(self) -> float:
        """The lowest expected accuracy in the ball. Skips examples with a boundary close to the edge of the ball."""
        accuracy = 1.0
        for fooled in ([0], [1], [0, 1]):
            room = largest_room(-self.normals[fooled], self.biases[fooled], np.zeros(2), self.threat)
            assume(abs(room) > 0.02)
            if room > 0:
                accuracy = min(accuracy, 1 - sum(self.weights[member] for member in fooled))
        return accuracy

    def oracle(self) -> Oracle:
        return oracle(Mixture(self.members, self.weights), members=self.members, weights=self.weights)

    def chance(self, images: Tensor) -> float:
        """Probability of a correct prediction, as in audits."""
        target = oracle(RandomizedEnsemble(self.members, self.weights))
        (predictions,) = Sampler(5, 0.01, members=self.oracle()).predict(target, images, LABEL)
        assert predictions.number == 0
        return predictions.correct


@pytest.mark.longer
@settings(max_examples=40)
@given(angles, angles, distances, distances, shares, norms)
def test_only_arc_reaches_the_optimum(
    first: float, second: float, near: float, far: float, share: float, norm: Norm
) -> None:
    pair = Pair((first, second), (near, far), share, norm)
    optimum = pair.optimum()
    assert pair.chance(IMAGE) == pytest.approx(1)
    for name, attack in ATTACKS.items():
        found = attack(pair.oracle(), IMAGE, LABEL, threat=pair.threat, generator=seeded())
        assert pair.threat.contains(found, IMAGE).all()
        assert pair.chance(found) >= optimum - 1e-6, name
        if name == "arc":
            assert pair.chance(found) == pytest.approx(optimum, abs=1e-6)


@settings(max_examples=30)
@given(angles, angles, distances, distances, norms)
def test_sampled_eot_is_not_below_the_optimum(first: float, second: float, near: float, far: float, norm: Norm) -> None:
    pair = Pair((first, second), (near, far), 0.5, norm)
    model = oracle(RandomizedEnsemble(pair.members))
    attack = partial(apgd, steps=10, eot=4, stop_early=False)
    found = attack(model, IMAGE, LABEL, threat=pair.threat, generator=seeded())
    assert pair.optimum() - 1e-6 <= pair.chance(found) <= 1


@given(shares, st.lists(st.booleans(), min_size=2, max_size=2))
def test_probability_is_the_weight_of_correct_members(share: float, is_correct: list[bool]) -> None:
    pair = Pair((0.0, np.pi / 2), (0.5, 0.5), share, "L2")
    point = torch.tensor([0.0 if each else 1.0 for each in is_correct]).view(1, 1, 1, 2)
    expected = sum(weight for weight, each in zip(pair.weights, is_correct, strict=True) if each)
    assert pair.chance(point) == pytest.approx(expected)
