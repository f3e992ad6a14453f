"""Randomized ensembles of linear classifiers, and how far they can be fooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import half_problem, predictions

NORMS: list[Norm] = ["Linf", "L2"]
FAR = (-100.0, 100.0)
both_norms = pytest.mark.parametrize("norm", NORMS)


class Ensemble(nn.Module):
    """Members and their probabilities, which are equal by default."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = [1 / len(members)] * len(members) if weights is None else list(weights)


def expected_accuracy(model: Ensemble, images: Tensor, labels: Tensor) -> Tensor:
    correct = [
        weight * (predictions(member, images) == labels).float()
        for member, weight in zip(model.members, model.weights, strict=True)
    ]
    return torch.stack(correct).sum(0)


class Scores(nn.Module):
    """A binary linear classifier for each image of a batch."""

    def __init__(self, weights: Tensor, biases: Tensor) -> None:
        super().__init__()
        self.weights, self.biases = weights, biases

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weights).flatten(1).sum(1) + self.biases
        return torch.stack([-score / 2, score / 2], 1)


def largest_room(normals: np.ndarray, distances: np.ndarray, image: np.ndarray, threat: ThreatModel) -> float:
    """Largest distance by which a point of the ball and the bounds is beyond all boundaries; below 0 if none is."""
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


def opposed(distance: float = 0.5, norm: Norm = "Linf", count: int = 6) -> tuple[Ensemble, Tensor, Tensor]:
    """Two classifiers with the image halfway between their boundaries: the gradients of their losses cancel.

    This is the example of Dbouk and Shanbhag (2022, arXiv:2206.06737) for a mean loss that is useless.
    """
    member, images, labels = half_problem(count, (1, 4, 4), norm, distance)
    toward = 2.0 * distance * 10 * (2 * labels - 1).float()
    other = Scores(-member.weight.detach().expand_as(images), toward - member.bias)
    return Ensemble([member, other]), images, labels
