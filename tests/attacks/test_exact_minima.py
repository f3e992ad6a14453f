"""Attacks against the smallest adversarial perturbation, which a mixed-integer program finds for a small network."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from pytest_gradmask import ThreatModel
from pytest_gradmask.attacks.autoattack import apgd_ce, fab_t, square
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.attacks.zero_order import zero_order
from tests.toys import draw, oracle, predictions, seeded

PIXELS, HIDDEN, CLASSES, COUNT = 6, 8, 3, 8
Run = Callable[..., Tensor]

#: With several restarts, because these networks have local optima.
ATTACKS: dict[str, tuple[Run, dict[str, int]]] = {
    "pgd": (pgd, {"steps": 40, "restarts": 6}),
    "apgd": (apgd, {"steps": 40, "restarts": 6}),
    "upstream's apgd": (apgd_ce, {"steps": 50}),
    "fab": (fab_t, {"steps": 20, "targets": 2}),
    "square": (square, {"steps": 300}),
    "zero-order": (zero_order, {"steps": 40, "pairs": 10, "cell": 1}),
}


@lru_cache
def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    """The network, images, and its predictions as labels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=seeded())
    images = draw(COUNT, 1, 2, 3)
    return model, images, predictions(model, images)


@lru_cache
def smallest(index: int) -> float:
    """The smallest eps (Linf, in [0, 1]) at which the image can be misclassified; infinite if there is none."""
    _, images, labels = problem()
    image, label = images[index].flatten().double().numpy(), int(labels[index])
    others = [other for other in range(CLASSES) if other != label]
    return min(towards(image, label, other) for other in others)


def towards(image: np.ndarray, label: int, other: int) -> float:
    """The smallest eps at which ``other`` has as large a logit as ``label``.

    The variables: pixels, hidden units after their ReLU, whether each is on, and eps.
    """
    first, second = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in problem()[0]
        if isinstance(layer, nn.Linear)
    )
    pixels, hidden = np.eye(PIXELS), np.eye(HIDDEN)
    high = first[0].clip(0).sum(1) + first[1]  # largest and smallest value of each unit before its ReLU
    low = first[0].clip(None, 0).sum(1) + first[1]
    ones, nothing = np.ones((PIXELS, 1)), np.zeros((HIDDEN, 1))
    rows = [
        (np.hstack([pixels, np.zeros((PIXELS, 2 * HIDDEN)), -ones]), -np.inf, image),  # x - eps <= image
        (np.hstack([pixels, np.zeros((PIXELS, 2 * HIDDEN)), ones]), image, np.inf),
        (np.hstack([-first[0], hidden, 0 * hidden, nothing]), first[1], np.inf),  # h >= Wx + b
        (np.hstack([-first[0], hidden, -low[:, None] * hidden, nothing]), -np.inf, first[1] - low),  # off: h <= 0
        (np.hstack([np.zeros((HIDDEN, PIXELS)), hidden, -high[:, None] * hidden, nothing]), -np.inf, 0),
    ]
    gain = second[0][other] - second[0][label]
    rows.append(
        (np.hstack([np.zeros(PIXELS), gain, np.zeros(HIDDEN + 1)])[None], second[1][label] - second[1][other], np.inf)
    )
    variables = PIXELS + 2 * HIDDEN + 1
    is_switch = np.zeros(variables)
    is_switch[PIXELS + HIDDEN : -1] = 1
    upper = np.ones(variables)
    upper[PIXELS : PIXELS + HIDDEN] = high.clip(0)
    cost = np.zeros(variables)
    cost[-1] = 1
    found = milp(
        cost, integrality=is_switch, bounds=Bounds(0, upper), constraints=[LinearConstraint(*row) for row in rows]
    )
    return float(found.fun) if found.success else np.inf


def broken_at(attack: str, share: float) -> list[bool]:
    """Whether an attack with this share of the smallest eps breaks each image."""
    model, images, labels = problem()
    run, arguments = ATTACKS[attack]
    results = []
    for index in range(COUNT):
        threat = ThreatModel(min(1.0, share * smallest(index)))
        image, label = images[index : index + 1], labels[index : index + 1]
        found = run(oracle(model), image, label, threat=threat, generator=seeded(), **arguments)
        results.append(bool(threat.contains(found, image)) and bool(predictions(model, found) != label))
    return results


def test_smallest_perturbation_against_random_search() -> None:
    model, images, labels = problem()
    sizes = [smallest(index) for index in range(COUNT)]
    assert all(0 < size < 1 for size in sizes)
    # No point of a random search has a smaller distance, and some have one that is not much larger.
    nearest = []
    for index, size in enumerate(sizes):
        noise = (2 * draw(20_000, 1, 2, 3, seed=index) - 1).sign() * draw(20_000, 1, 1, 1, seed=99) * 2 * size
        points = (images[index] + noise).clamp(0, 1)
        wrong = predictions(model, points) != labels[index]
        nearest.append((points - images[index]).abs().amax((1, 2, 3))[wrong].min().item() / size)
    assert min(nearest) >= 1 - 1e-5
    assert sorted(nearest)[COUNT // 2] < 1.2


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_breaks_below_the_smallest_perturbation(attack: str) -> None:
    assert not any(broken_at(attack, 0.99))


#: Attack, eps as a multiple of the smallest one, and the least number of broken images.
ENOUGH = [("pgd", 1.2, 7), ("apgd", 1.2, 7), ("upstream's apgd", 1.5, 7), ("zero-order", 1.2, 7)]


@pytest.mark.parametrize(("attack", "share", "least"), ENOUGH)
def test_most_images_break_above_it(attack: str, share: float, least: int) -> None:
    assert sum(broken_at(attack, share)) >= least
