"""Reference attacks of the zoo: views of a defense, and the choice among their results."""

from __future__ import annotations

import torch
from torch import nn

from audits.defenses import (
    references,
)
from audits.defenses.rough import Ripple
from pytest_gradmask.attacks.losses import logit_margin
from pytest_gradmask.threat import ThreatModel
from tests.toys import Detach, half_problem, predictions, seeded


def test_bpda_succeeds_where_a_plain_attack_fails() -> None:
    model, images, labels = half_problem(8, (1, 4, 4), "Linf", distance=0.3)
    defense = nn.Sequential(Detach(), model).eval()
    threat = ThreatModel(0.4, bounds=(-100.0, 100.0))
    broken = {}
    for name, view in {"itself": references.ITSELF, "bypass": references.bypass(Detach)}.items():
        found = references.attack_views(
            defense, images, labels, threat=threat, generator=seeded(), views=[view], steps=10
        )
        broken[name] = int((predictions(defense, found) != labels).sum())
    assert broken == {"itself": 0, "bypass": 8}


def test_useless_view_does_not_weaken_a_useful_one() -> None:
    model, images, labels = half_problem(8, (1, 4, 4), "Linf", distance=0.3)
    defense = nn.Sequential(Detach(), model).eval()
    views = [references.bypass(Detach), references.ITSELF]
    for order in (views, views[::-1]):
        found = references.attack_views(
            defense, images, labels, threat=ThreatModel(0.4, bounds=(-100.0, 100.0)), generator=seeded(), views=order,
            steps=10,
        )  # fmt: skip
        assert (predictions(defense, found) != labels).all()


def test_the_margin_is_what_a_reference_keeps_of_failures() -> None:
    model, images, labels = half_problem(8, (1, 4, 4), "Linf", distance=1.0)
    found = references.attack_views(
        model, images, labels, threat=ThreatModel(0.4, bounds=(-100.0, 100.0)), generator=seeded(), steps=10
    )
    with torch.no_grad():
        assert (logit_margin(model(found), labels) > logit_margin(model(images), labels) + 1).all()
        assert (logit_margin(model(found), labels) < 0).all()


def test_each_class_is_a_target_in_turn() -> None:
    logits, labels = torch.tensor([[1.0, 5, 2], [4, 0, 1]]), torch.tensor([1, 2])
    losses = references.multi_targeted(3)
    assert [loss(logits, labels).tolist() for loss in losses[2:]] == [[-4, 3], [0, -1], [-3, 0]]


def test_smoothing_sees_through_a_ripple() -> None:
    model, images, _ = half_problem(8, (1, 4, 4), "Linf", distance=0.3)
    defense = nn.Sequential(Ripple(0.05, 200.0), model).eval()
    gradient_norms = {}
    for name, std in (("none", 0.0), ("noise", 0.05)):
        view = references.smoothed(std, draws=200).of(defense)
        point = images.clone().requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            total = torch.stack([view(point)[:, 1].sum() for _ in range(200)]).mean()
        (gradient,) = torch.autograd.grad(total, point)
        gradient_norms[name] = torch.cosine_similarity(gradient.flatten(1), model.weight.flatten()[None]).mean()
    assert gradient_norms["noise"] > 0.9 > gradient_norms["none"] + 0.2
