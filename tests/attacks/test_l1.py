"""The threat model L1: every attack of an audit runs in its ball, and breaks what can be broken there."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pytest_gradmask import Defense, ThreatModel, Verdict, load_model
from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.decision import rays
from pytest_gradmask.attacks.pgd import apgd, pgd
from pytest_gradmask.attacks.protocol import AttackFunction
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.loading.datasets import load_dataset
from tests.attacks.ensemble_toys import Ensemble, expected_accuracy
from tests.toys import audited, draw, half_problem, linear, predictions, seeded

ATTACKS: dict[str, AttackFunction] = {
    "pgd": partial(pgd, steps=50),
    "apgd": partial(apgd, steps=50),
    "apgd-ce": partial(autoattack.apgd_ce, steps=50),
    "apgd-t": partial(autoattack.apgd_t, steps=50, targets=3),
    "fab-t": partial(autoattack.fab_t, steps=20, targets=3),
    "square": partial(autoattack.square, steps=500),
    "zero-order": partial(zero_order, steps=20, pairs=20),
    "rays": partial(rays, steps=500),
}
IMAGES = draw(40, 3, 8, 8, seed=5)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_stay_in_the_ball_and_break_images(attack: AttackFunction, bounds: tuple[float, float]) -> None:
    model, width = linear(), bounds[1] - bounds[0]
    images = IMAGES * width + bounds[0]
    labels = predictions(model, images)
    for eps, broken in ((20.0, True), (1e-3, False)):
        threat = ThreatModel(eps * width, "L1", bounds)
        found = attack(model, images, labels, threat=threat, generator=seeded())
        assert threat.contains(found, images).all()
        assert ((predictions(model, found) != labels).float().mean() > 0.1) == broken


@pytest.mark.parametrize("attack", [ATTACKS["pgd"], ATTACKS["apgd"]], ids=["pgd", "apgd"])
def test_what_is_well_inside_the_ball_is_found(attack: AttackFunction) -> None:
    model, images, labels = half_problem(9, (3, 4, 4), "L1", distance=0.5)
    for eps, broken in ((0.6, True), (0.49, False)):
        threat = ThreatModel(eps, "L1", (-100, 100))
        found = attack(model, images, labels, threat=threat, generator=seeded())
        assert ((predictions(model, found) != labels) == broken).all()


def test_arc_fools_members_in_l1() -> None:
    member, images, labels = half_problem(7, (1, 1, 2), "L1", distance=0.5)
    for eps, broken in ((0.51, True), (0.49, False)):
        threat = ThreatModel(eps, "L1", (-100, 100))
        found = arc(Ensemble([member]), images, labels, threat=threat, steps=20, generator=seeded())
        assert threat.contains(found, images).all()
        assert (expected_accuracy(Ensemble([member]), found, labels) == (0 if broken else 1)).all()


def test_an_ensemble_is_audited_in_l1() -> None:
    members = [linear(4), linear(4)]
    defense = Defense(members[0], members=members)
    result = audited(defense, IMAGES, threat=ThreatModel(12, "L1"), margin=0.3)
    assert {attack.status for attack in result.attacks} <= {"done", "skipped", "skipped-early"}
    assert result.verdict is Verdict.NOT_MASKED


@pytest.mark.longer
def test_our_apgd_is_as_strong_as_upstreams_in_l1() -> None:
    data, model = load_dataset("embedded"), load_model("resnet-adversarial")
    correct = predictions(model, data.images) == data.labels
    images, labels = data.images[correct], data.labels[correct]
    left = {}
    for name in ("apgd", "apgd-ce"):
        found = ATTACKS[name](model, images, labels, threat=ThreatModel(12, "L1"), generator=seeded())
        left[name] = int((predictions(model, found) == labels).sum())
    assert left["apgd"] <= left["apgd-ce"] + 1
    assert left["apgd"] < 0.7 * int(correct.sum())
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).all()
