"""Attacks that need many queries spend no more of them on images that they will hardly break."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_gradmask import ThreatModel
from pytest_gradmask.attacks.autoattack import square
from pytest_gradmask.attacks.hopeless import hopeless, never
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.randomized.streams import RandomStream
from tests.toys import CPU, draw, linear, predictions

IMAGES = draw(40, 3, 8, 8, seed=5)
ATTACKS: dict[str, Any] = {
    "square": partial(square, steps=200),
    "square-l2": partial(square, steps=200),
    "zero-order": partial(zero_order, steps=20, pairs=5),
}


def run(name: str, eps: float, give_up: Any) -> tuple[Oracle, Tensor]:
    oracle = Oracle(linear(), RandomStream(0, CPU))
    threat = ThreatModel(10 * eps, norm="L2") if name.endswith("l2") else ThreatModel(eps)
    found = ATTACKS[name](
        oracle, IMAGES, predictions(linear(), IMAGES), threat=threat, generator=torch.Generator().manual_seed(0),
        give_up=give_up,
    )  # fmt: skip
    assert threat.contains(found, IMAGES).all()
    return oracle, oracle(found).argmax(1) != predictions(linear(), IMAGES)


@pytest.mark.parametrize("name", ATTACKS)
def test_hopeless_images_cost_a_quarter(name: str) -> None:
    whole, quarter = (run(name, 1e-4, give_up) for give_up in (never, hopeless))
    assert not whole[1].any()
    assert not quarter[1].any()
    assert 0.2 < quarter[0].forwards / whole[0].forwards < 0.4


@pytest.mark.parametrize("name", ATTACKS)
def test_what_can_be_broken_is_broken(name: str) -> None:
    (_, whole), (_, quick) = (run(name, 0.1, give_up) for give_up in (never, hopeless))
    assert whole.sum() >= 20
    assert quick.sum() >= 0.95 * whole.sum()


@pytest.mark.parametrize("name", ATTACKS)
def test_other_images_are_unaffected(name: str) -> None:
    """The random numbers of an image do not depend on which others are left."""

    def half(before: Tensor, _best: Tensor, done: float) -> Tensor:
        return (before > before.median()) & (done > 0.5)

    (_, whole), (oracle, left) = (run(name, 0.03, give_up) for give_up in (never, half))
    assert (left & ~whole).sum() == 0
    assert oracle.forwards < run(name, 0.03, never)[0].forwards


def test_the_rule() -> None:
    before = torch.tensor([-2.0, -2.0, -2.0, -2.0, float("nan"), -float("inf")])
    best = torch.tensor([-1.9, -1.2, -0.9, 0.5, -1.0, -float("inf")])
    assert hopeless(before, best, 0.24).tolist() == [False] * 6
    assert hopeless(before, best, 0.3).tolist() == [True, False, False, False, False, False]
    assert hopeless(before, best, 0.5).tolist() == [True, True, False, False, False, False]
    assert not never(before, best, 0.9).any()
