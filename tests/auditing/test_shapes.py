"""Inputs that are no pictures: tables, signals and videos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Audit, Defense, InputError, ThreatModel, Verdict, apgd, audit, pgd, transfer_matrix
from pytest_gradmask.attacks.decision import rays
from pytest_gradmask.attacks.zero_order import zero_order
from pytest_gradmask.report.evidence.collection import collect_evidence
from tests.toys import TINY, KillGradient, Noisy, Quantize, draw, predictions, seeded

SHAPES = {"table": (12,), "signal": (2, 30), "video": (3, 4, 6, 6)}
EPS = {"Linf": 0.15, "L2": 0.8, "L1": 3.0}


def data(kind: str, count: int = 24) -> Tensor:
    return draw(count, *SHAPES[kind])


def network(kind: str) -> nn.Module:
    """A small network with a hidden layer, that fits the data."""
    size = int(np.prod(SHAPES[kind]))
    layers: dict[str, list[nn.Module]] = {
        "table": [nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)],
        "signal": [nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(120, 4)],
        "video": [nn.Conv3d(3, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(2 * size // 3, 4)],
    }
    model = nn.Sequential(*layers[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=seeded())
        last: Any = layers[kind][-1]
        last.bias.sub_(model(data(kind)).mean(0))  # so that every class is an answer
    return model.eval()


def run(model: nn.Module | Defense, kind: str, norm: Any = "Linf", **arguments: Any) -> Audit:
    images = data(kind)
    labels = predictions(model.model if isinstance(model, Defense) else model, images)
    arguments = {"threat": ThreatModel(EPS[norm], norm), "budget": TINY, **arguments}
    return audit(model, images, labels, **arguments)


each_kind = pytest.mark.parametrize("kind", SHAPES)


@each_kind
@pytest.mark.parametrize("norm", EPS)
def test_honest_networks_are_not_masked(kind: str, norm: str) -> None:
    found = run(network(kind), kind, norm)
    assert found.verdict is Verdict.NOT_MASKED
    assert found.robust_accuracy.value < 0.5
    assert not {finding.id for finding in found.findings if finding.undermines_attacks}
    assert found.attack("square").note == "it needs images N x C x H x W"
    assert all(attack.status != "failed" for attack in found.attacks)


@each_kind
def test_robust_networks_are_not_masked(kind: str) -> None:
    found = run(network(kind), kind, threat=ThreatModel(1e-4))
    assert found.verdict is Verdict.NOT_MASKED
    assert found.robust_accuracy.value == 1


@each_kind
@pytest.mark.parametrize("front", [Quantize, KillGradient])
def test_a_mask_is_found_and_named(kind: str, front: type[nn.Module]) -> None:
    threat = ThreatModel(0.1)  # further away, random starts break the video
    found = run(nn.Sequential(front(), network(kind)).eval(), kind, threat=threat)
    assert found.verdict is Verdict.MASKED
    assert found.operations
    named = run(Defense(nn.Sequential(front(), network(kind)).eval(), bypass=["0"]), kind, threat=threat)
    assert named.verdict is Verdict.MASKED
    assert named.bypassed == ("0",)
    assert len(named.attack("bpda").broken) > 10 or len(named.attack("bpda-operations").broken) > 10


@each_kind
def test_all_attacks_but_square_run(kind: str) -> None:
    front = nn.Sequential(Quantize(), network(kind)).eval()
    found = run(front, kind, exhaustive=True)
    assert [attack.name for attack in found.attacks if attack.status != "done"] == ["square"]
    assert {attack.invalid for attack in found.attacks} == {0}
    assert found.autoattack_accuracy is None


@pytest.mark.longer
@each_kind
def test_a_randomized_defense(kind: str) -> None:
    found = run(Noisy(network(kind), 0.05).eval(), kind, exhaustive=True)
    assert found.verdict is not Verdict.MASKED
    assert all(attack.status != "failed" for attack in found.attacks)


@each_kind
def test_members_of_an_ensemble(kind: str) -> None:
    members = [network(kind), network(kind)]

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(members)

        def forward(self, images: Tensor) -> Tensor:
            return self.members[int(torch.randint(2, ()))](images) * (1 + 0.1 * torch.rand(()))  # type: ignore[no-any-return]

    found = run(Defense(Either().eval(), members=members), kind, exhaustive=True)
    assert {attack.name: attack.status for attack in found.attacks}["arc"] == "done"
    assert all(attack.status != "failed" for attack in found.attacks)


@each_kind
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("attack", [pgd, apgd, zero_order, rays], ids=lambda attack: attack.__name__)
def test_attacks_stay_in_the_ball(attack: Any, kind: str, norm: Any) -> None:
    model, images, threat = network(kind), data(kind), ThreatModel(EPS[norm], norm)
    labels = predictions(model, images)
    steps = 200 if attack is rays else 20
    found = attack(model, images, labels, threat=threat, steps=steps, generator=seeded())
    assert threat.contains(found, images).all()
    if attack in (pgd, apgd) or norm == "Linf":
        assert (predictions(model, found) != labels).sum() > 5


@each_kind
def test_the_report_says_that_there_are_no_pictures(kind: str) -> None:
    found = run(network(kind), kind)
    model = network(kind)
    evidence = collect_evidence(found, model, data(kind), predictions(model, data(kind)), threat=ThreatModel(0.15))
    assert [name for name in ("noise", "landscapes", "pictures") if "error" in evidence[name]] == ["pictures"]
    assert "are no pictures" in evidence["pictures"]["error"]


@pytest.mark.longer
def test_other_bounds_and_arrays() -> None:
    model, table = network("table"), 10 * data("table") - 5
    labels = predictions(model, table)
    threat = ThreatModel(1.5, bounds=(-5.0, 5.0))
    found = audit(model, table.numpy(), labels.numpy(), threat=threat, budget=TINY)
    assert found.verdict is Verdict.NOT_MASKED
    pairs = [(row, int(label)) for row, label in zip(table.numpy(), labels, strict=True)]
    assert audit(model, pairs, threat=threat, budget=TINY).robust_accuracy == found.robust_accuracy


@each_kind
def test_a_transfer_matrix(kind: str) -> None:
    models = {"a": network(kind), "b": network(kind)}
    matrix = transfer_matrix(models, data(kind), predictions(models["a"], data(kind)), threat=ThreatModel(0.15))
    rate = matrix.transfer_rate("a", "b")
    assert rate is not None
    assert rate.value == 1


def test_one_axis_is_too_few() -> None:
    with pytest.raises(InputError, match=r"shape is \(24,\); a batch has at least two axes"):
        audit(network("table"), torch.rand(24), torch.zeros(24).long())
    with pytest.raises(InputError, match=r"for one image C x H x W use images\[None\]"):
        audit(network("table"), torch.rand(3, 8, 8), torch.zeros(1).long())
