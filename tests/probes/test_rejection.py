"""Reject options that do not fit are refused; many clean rejections and undeclared reject classes are findings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.probes.preflight import Preflight, check_defense
from pytest_gradmask.probes.rejection import unused_class
from tests.toys import draw, linear, oracle, predictions

IMAGES = draw(40, 3, 8, 8)
MODEL = linear()
LABELS = predictions(MODEL, IMAGES)


def checked(rejects: Any, labels: Tensor = LABELS) -> Preflight:
    return check_defense(Defense(MODEL, rejects=rejects), oracle(MODEL), IMAGES, labels)


def ids(findings: Any) -> list[str]:
    return [finding.id for finding in findings]


@pytest.mark.parametrize("rejects", [True, -1, 1.5, "last"])
def test_neither_index_nor_function(rejects: Any) -> None:
    with pytest.raises(InputError, match=r"rejects=.*: must be the index of the class that means rejected"):
        Defense(MODEL, rejects=rejects)


@pytest.mark.parametrize(
    ("rejects", "message"),
    [
        pytest.param(4, r"rejects=4: Sequential has 4 outputs; .* 0..3", id="no such class"),
        pytest.param(3, r"labels: \d+ images have the label 3, which means rejected", id="a label"),
        pytest.param(lambda logits: True, r"rejects: returns bool, not a tensor", id="no tensor"),
        pytest.param(lambda logits: logits > 0, r"shape \(40, 4\) to shape \(40, 4\); must be \(40,\)", id="shape"),
        pytest.param(lambda logits: logits.argmax(1), r"returns torch.int64; must be bool", id="integers"),
        pytest.param(lambda logits: logits[:, 0] * torch.nan, r"returns NaN for 40 of 40 clean", id="nan"),
    ],
)
def test_refused(rejects: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(rejects)


def test_a_function_that_raises() -> None:
    with pytest.raises(DefenseError, match="rejects of Sequential raised IndexError"):
        checked(lambda logits: logits[:, 7])


def test_few_clean_rejections() -> None:
    result = checked(lambda logits: torch.arange(40.0) - 37.5 + 0 * logits[:, 0])
    assert result == Preflight(4, randomized=False, findings=(), rejected=(False,) * 38 + (True,) * 2)


def test_many_clean_rejections() -> None:
    result = checked(lambda logits: torch.arange(40.0) - 29.5 + 0 * logits[:, 0])
    assert ids(result.findings) == ["clean-rejections"]
    assert "10 of 40 clean images are rejected (25%)" in result.findings[0].message


def test_decisions_undermine_attacks() -> None:
    (finding,) = checked(lambda logits: logits[:, 0] > 100).findings
    assert (finding.id, finding.undermines_attacks) == ("rejection-without-score", True)


def test_the_reject_class_is_not_counted() -> None:
    labels = LABELS.where(LABELS != 3, 0)
    assert checked(3, labels).classes == 3


class TestUnusedClass:
    logits = torch.eye(11)[torch.arange(60) % 10]
    labels = torch.arange(60) % 10

    def test_asked(self) -> None:
        (finding,) = unused_class(self.logits, self.labels)
        assert "say Defense(rejects=10)" in finding.message
        assert not finding.undermines_attacks

    def test_asked_if_a_few_are_predicted(self) -> None:
        logits = self.logits.clone()
        logits[:5, 10] = 2
        assert ids(unused_class(logits, self.labels)) == ["unused-class"]

    @pytest.mark.parametrize(
        ("logits", "labels"),
        [
            pytest.param(logits[:, :10], labels, id="all used"),
            pytest.param(logits, labels.where(labels != 3, 2), id="another one unused, too"),
            pytest.param(torch.eye(1000)[labels], labels, id="a subset of many classes"),
            pytest.param(logits[:20], labels[:20], id="too few images"),
            pytest.param(torch.eye(11)[labels * 0 + 10], labels, id="often predicted"),
            pytest.param(torch.eye(2)[labels * 0], labels * 0, id="two classes"),
        ],
    )
    def test_not_asked(self, logits: Tensor, labels: Tensor) -> None:
        assert unused_class(logits, labels) == []
