"""Models that answer in other forms than logits, or accept batches of one size, are audited all the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_gradmask import Audit, Defense, DefenseError, ThreatModel, Verdict, audit
from pytest_gradmask.probes.preflight import _kind_of_probabilities

THREAT = ThreatModel(eps=0.2)


class Rounded(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images * 3).round() / 3


class Answers(nn.Module):
    """A linear model, behind a front end, whose logits are changed by a function."""

    def __init__(self, change: Callable[[Tensor], Any], front: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = front or nn.Identity()
        self.head = nn.Linear(3 * 6 * 6, 5)
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.head(self.front(images).flatten(1)))


@dataclass
class Output:
    logits: Tensor


IMAGES = torch.rand(24, 3, 6, 6, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    LABELS = Answers(lambda logits: logits)(IMAGES).argmax(1)


def masked(logits: Tensor) -> Tensor:
    return torch.cat([logits, torch.full_like(logits[:, :2], -torch.inf)], 1)


def of_four(logits: Tensor) -> Tensor:
    if len(logits) != 4:
        raise ValueError("only batches of four")
    return logits


def shares(logits: Tensor) -> Tensor:
    members = [logits + shift for shift in (0, 1e-3, 2e-3)]
    return torch.stack([nn.functional.one_hot(each.argmax(1), 5).float() for each in members]).mean(0)


FORMS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "model output": (lambda logits: SimpleNamespace(logits=logits), "takes its logits"),
    "dataclass": (Output, "returns Output; the audit takes its logits"),
    "dictionary": (lambda logits: {"logits": logits, "loss": None}, "takes its logits"),
    "other dictionary": (lambda logits: {"out": logits}, "element 'out'"),
    "tuple": (lambda logits: (logits, logits[:, :1]), "element 0"),
    "features first": (lambda logits: (logits[:, :, None], logits), "element 1"),
    "minus infinity": (masked, "minus infinity"),
    "fixed batch size": (of_four, "batches of 4 images alone"),
}


def run(model: nn.Module, **more: Any) -> Audit:
    return audit(Defense(model.eval(), name="defense", **more), IMAGES, LABELS, threat=THREAT, margin=0.3)


@pytest.fixture(scope="module")
def plain() -> Audit:
    return run(Answers(lambda logits: logits))


@pytest.mark.parametrize("name", FORMS)
def test_it_gets_the_verdict_of_the_logits(name: str, plain: Audit) -> None:
    change, words = FORMS[name]
    result = run(Answers(change))
    assert result.verdict is plain.verdict is Verdict.NOT_MASKED
    assert abs(result.robust_accuracy.value - plain.robust_accuracy.value) <= 0.1
    (finding,) = [finding for finding in result.findings if finding.id == "adapted-model"]
    assert words in finding.message


@pytest.mark.parametrize("name", ["dictionary", "tuple", "minus infinity"])
def test_a_mask_behind_it_is_found_and_named(name: str) -> None:
    result = run(Answers(FORMS[name][0], Rounded()))
    assert result.verdict is Verdict.MASKED
    assert [operation.name for operation in result.operations] == ["torch.round"]
    named = run(Answers(FORMS[name][0], Rounded()), bypass=["front"])  # the names of submodules are unchanged
    assert named.verdict is Verdict.MASKED
    assert named.bypassed == ("front",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: logits.softmax(1), "returns probabilities;"),
        (lambda logits: (logits.softmax(1), None), "returns probabilities;"),
        (lambda logits: nn.functional.one_hot(logits.argmax(1), 5).float(), "hard labels"),
        (lambda logits: logits.argmax(1), "hard labels"),
        (shares, "vote shares|hard labels"),
        (lambda logits: (0.75 * shares(logits) + 0.05).float(), "vote shares"),
    ],
)
def test_probabilities_shares_and_labels_are_recognised(change: Callable[[Tensor], Any], words: str) -> None:
    result = run(Answers(change))
    (finding,) = [finding for finding in result.findings if finding.id == "probabilities"]
    assert re.search(words, finding.message)
    assert result.clean_accuracy.value == 1
    assert result.verdict is not Verdict.NOT_MASKED or "probabilities;" in finding.message


@pytest.mark.parametrize(
    ("sure", "words"),
    [(1.0, "hard labels"), (0.5, "vote shares"), (1 - 1e-5, "^probabilities"), (0.7, "vote shares"), (0.7111, "^prob")],
)
def test_a_model_that_is_nearly_sure_does_not_vote(sure: float, words: str) -> None:
    output = torch.tensor([[sure, 1 - sure, 0.0], [0.0, sure, 1 - sure]])
    assert re.search(words, _kind_of_probabilities(output))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: None,
        lambda logits: {"loss": logits.sum()},
        lambda logits: logits[:, 0],
        lambda logits: logits.masked_fill(logits > 0, torch.nan),
        lambda logits: logits.masked_fill(logits > 0, torch.inf),
        lambda logits: 1 / 0,
    ],
)
def test_what_is_not_understood_is_still_an_error(change: Callable[[Tensor], Any]) -> None:
    with pytest.raises(DefenseError):
        run(Answers(change))


def test_a_model_that_needs_no_adapter_gets_none(plain: Audit) -> None:
    assert not {"adapted-model", "converted-input", "probabilities"} & {finding.id for finding in plain.findings}


def test_a_loader_is_audited() -> None:
    loader = DataLoader(TensorDataset((IMAGES * 255).to(torch.uint8), LABELS[:, None]), batch_size=5)
    result = audit(Answers(lambda logits: logits).eval(), loader, threat=THREAT, margin=0.3)
    assert result.given == 20
    (finding,) = [finding for finding in result.findings if finding.id == "converted-input"]
    assert "divided by 255" in finding.message
