"""Outputs that are not one logit a class: one score an image, and several labels an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_gradmask import (
    Attack,
    Audit,
    Defense,
    DefenseError,
    InputError,
    ThreatModel,
    Verdict,
    audit,
)
from pytest_gradmask.attacks.losses import cross_entropy, logit_margin
from pytest_gradmask.auditing.multilabel import with_joint_labels
from pytest_gradmask.loading.adapters import JointLabels
from pytest_gradmask.report.evidence.collection import collect_evidence
from tests.toys import IMAGES, THREAT, TINY, KillGradient, Noisy, Quantize, linear


class OneScore(nn.Module):
    """One score of two classes: N, or N x 1, before or after a sigmoid."""

    def __init__(self, front: nn.Module | None = None, *, axes: int = 1, sigmoid: bool = False) -> None:
        super().__init__()
        self.front, self.head = front or nn.Identity(), linear(2)
        self.axes, self.sigmoid = axes, sigmoid

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.front(images))
        score = logits[:, 1] - logits[:, 0]
        score = score.sigmoid() if self.sigmoid else score
        return score if self.axes == 1 else score[:, None]  # type: ignore[no-any-return]


def binary(model: nn.Module, **arguments: Any) -> Audit:
    with torch.no_grad():
        labels = (linear(2)(IMAGES)).argmax(1)
    return audit(model.eval(), IMAGES, labels, **{"threat": THREAT, "budget": TINY, **arguments})


FORMS = [{"axes": 1}, {"axes": 2}, {"sigmoid": True}]
each_form = pytest.mark.parametrize("form", FORMS, ids=str)


@each_form
def test_one_score_is_not_masked(form: Any) -> None:
    found = binary(OneScore(**form))
    assert found.verdict is Verdict.NOT_MASKED
    assert found.clean_accuracy.value == 1
    assert found.robust_accuracy.value < 0.3
    words = next(finding.message for finding in found.findings if finding.id == "adapted-model")
    assert words.endswith("as the probability of class 1" if "sigmoid" in form else "as the logit of class 1")
    robust = binary(OneScore(**form), threat=ThreatModel(1e-5))
    assert robust.verdict is Verdict.NOT_MASKED
    assert robust.robust_accuracy.value > 0.9


@each_form
@pytest.mark.parametrize("front", [Quantize, KillGradient])
def test_a_mask_before_one_score_is_found(form: Any, front: type[nn.Module]) -> None:
    found = binary(OneScore(front(), **form))
    assert found.verdict is Verdict.MASKED
    assert found.bypassed == ("front",)


def test_one_score_of_more_classes_is_refused() -> None:
    with pytest.raises(DefenseError, match="K of at least 2"):
        audit(OneScore().eval(), IMAGES, torch.arange(24) % 3, threat=THREAT, budget=TINY)


# several labels


LABELS = 3


class Tags(nn.Module):
    """A score for each of three labels, after a hidden layer."""

    def __init__(self, front: nn.Module | None = None, labels: int = LABELS) -> None:
        super().__init__()
        self.front = front or nn.Identity()
        self.head = linear(labels)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.front(images))  # type: ignore[no-any-return]


def tags(labels: int = LABELS) -> Tensor:
    with torch.no_grad():
        return (Tags(labels=labels)(IMAGES) > 0).long()  # type: ignore[no-any-return]


def tagged(model: nn.Module, labels: Tensor | None = None, **arguments: Any) -> Audit:
    known = arguments.pop("known", {})
    defense = Defense(model.eval(), outputs="multilabel", name="tags", **known)
    arguments = {"threat": ThreatModel(0.05), "budget": TINY, **arguments}
    return audit(defense, IMAGES, tags() if labels is None else labels, **arguments)


def test_losses_are_those_of_the_labels() -> None:
    scores, wanted = 3 * torch.randn(50, 4), torch.randint(0, 2, (50, 4))
    joint = JointLabels(4)(nn.Identity(), scores)
    _, classes, _ = with_joint_labels(Defense(nn.Identity().eval(), outputs="multilabel"), wanted)
    each = functional.binary_cross_entropy_with_logits(scores, wanted.float(), reduction="none")
    assert torch.allclose(cross_entropy(joint, classes), each.sum(1), atol=1e-4)
    signed = scores * (2 * wanted - 1)
    nearest = torch.where((signed > 0).all(1), -signed.amin(1), (-signed).clamp_min(0).sum(1))
    assert torch.allclose(logit_margin(joint, classes), nearest, atol=1e-4)
    assert torch.equal(joint.argmax(1) == classes, (signed > 0).all(1))


def test_honest_tags_are_not_masked() -> None:
    found = tagged(Tags())
    assert found.verdict is Verdict.NOT_MASKED
    assert found.clean_accuracy.value == 1
    assert found.robust_accuracy.value < 0.2
    assert "8 joint classes" in next(finding.message for finding in found.findings if finding.id == "adapted-model")
    assert all(attack.status != "failed" for attack in found.attacks)
    robust = tagged(Tags(), threat=ThreatModel(1e-5))
    assert robust.verdict is Verdict.NOT_MASKED
    assert robust.robust_accuracy.value > 0.9


@pytest.mark.parametrize("front", [Quantize, KillGradient])
def test_a_mask_before_tags_is_found(front: type[nn.Module]) -> None:
    found = tagged(Tags(front()))
    assert found.verdict is Verdict.MASKED
    assert found.bypassed == ("front",)
    named = tagged(Tags(front()), known={"bypass": ["front"]})
    assert named.verdict is Verdict.MASKED


def test_one_flipped_label_is_enough() -> None:
    """Only the last label can be flipped at this distance: one that does not count is no reason to call it robust."""

    class Near(Tags):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + torch.tensor([1000.0, -1000.0, 0.0])

    labels = tags()
    labels[:, 0], labels[:, 1] = 1, 0
    assert tagged(Near(), labels).robust_accuracy.value < 0.5


def test_everything_that_a_defense_knows_is_adapted() -> None:
    def asked(model: nn.Module, images: Tensor, labels: Tensor, **_: Any) -> Tensor:
        assert model(images).shape == (len(images), 2**LABELS)
        assert labels.shape == (len(images),)
        return images

    attack = Attack(asked, through=Tags().eval())
    found = tagged(Tags(Quantize()), known={"sources": [Tags().eval()], "attacks": [attack]}, exhaustive=True)
    assert {found.attack(name).status for name in ("asked", "transfer-source-0")} == {"done"}
    assert len(found.attack("transfer-source-0").broken) > 10
    members = [Tags().eval(), Tags().eval()]
    pair = tagged(Noisy(Tags(), 0.01), known={"members": members}, exhaustive=True)
    assert all(each.status != "failed" for each in pair.attacks)


def test_the_report_of_tags_has_all_its_parts() -> None:
    found, defense = tagged(Tags()), Defense(Tags().eval(), outputs="multilabel")
    evidence = collect_evidence(found, defense, IMAGES, tags(), threat=ThreatModel(0.05))
    assert not [name for name, part in evidence.items() if isinstance(part, dict) and "error" in part]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(24).long(), r"must be N x K, of 0 and 1"),
        (torch.full((24, 3), 2), r"must be N x K, of 0 and 1"),
        (torch.zeros(24, 9).long(), r"9 labels an image; at most 8"),
        (torch.zeros(24, 4).long(), None),
    ],
)
def test_what_is_wrong_with_tags_is_said(labels: Tensor, message: str | None) -> None:
    if message is None:
        with pytest.raises(DefenseError, match=r"returns \(\d+, 3\) for \d+ images with 4 labels each"):
            tagged(Tags(), labels)
    else:
        with pytest.raises(InputError, match=message):
            tagged(Tags(), labels)


def test_tags_of_an_array() -> None:
    assert tagged(Tags(), tags().numpy()).verdict is Verdict.NOT_MASKED  # type: ignore[arg-type]
