"""Defenses that disguise their logits, which are found inside, and defenses that show none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_gradmask import Defense, ThreatModel, Verdict
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits, find_inner_logits
from pytest_gradmask.auditing import plan
from tests.toys import IMAGES, KillGradient, audited, convolutional, linear

EPS = ThreatModel(0.15)


class Wrapped(nn.Module):
    """A classifier whose outputs are changed by a function."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.net, self.how = model, how
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.net(images)
        changed = {
            "scaled": lambda: 1000 * logits,
            "saturated": lambda: (1e4 * logits).softmax(1),
            "log-softmax": lambda: logits.log_softmax(1),
            "reversed": lambda: -logits,
            "grouped": lambda: logits[:, :2],
            "as is": lambda: logits,
        }
        result: torch.Tensor = changed[self.how]()
        return result


class OneHot(nn.Module):
    """Returns the class and nothing else; no submodule computes it."""

    def __init__(self) -> None:
        super().__init__()
        layer = linear()[1]
        assert isinstance(layer, nn.Linear)
        self.weight, self.bias = layer.weight, layer.bias
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = nn.functional.linear(images.flatten(1), self.weight, self.bias)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


@pytest.mark.parametrize("how", ["scaled", "saturated"])
@pytest.mark.parametrize(("make", "first"), [(linear, "net.1"), (convolutional, None)])
def test_logits_behind_a_disguise_are_found(how: str, make: object, first: str | None) -> None:
    model = Wrapped(linear() if make is linear else convolutional(), how)
    found = find_inner_logits(model, IMAGES[:8], "probabilities" if how == "saturated" else "logits")
    assert found.startswith("net")
    assert first is None or found == first
    inside = InnerLogits(model, found)
    torch.testing.assert_close(inside(IMAGES), model.net(IMAGES))
    assert not model.get_submodule(found)._forward_hooks


@pytest.mark.parametrize("how", ["as is", "log-softmax", "reversed", "grouped"])
def test_what_is_no_disguise_or_none_of_the_same_classes_is_not_taken_for_one(how: str) -> None:
    assert find_inner_logits(Wrapped(linear(), how), IMAGES[:8]) == ""


def test_a_model_without_submodules_has_none_inside() -> None:
    assert find_inner_logits(OneHot(), IMAGES[:8]) == ""


def test_a_saturated_softmax_is_taken_off_without_being_told() -> None:
    found = audited(Defense(Wrapped(linear(), "saturated"), outputs="probabilities"), threat=EPS)
    assert found.verdict is Verdict.MASKED
    assert found.bypassed == ("all after net.1",)
    assert found.accuracy_under("inner-logits").value < 0.2 < found.gradient_accuracy.value


def test_inner_logits_are_attacked_through_what_is_bypassed() -> None:
    model = Wrapped(nn.Sequential(KillGradient(), linear()), "scaled")
    found = audited(model, threat=EPS, exhaustive=True)
    assert found.verdict is Verdict.MASKED
    assert found.accuracy_under("inner-logits").value < 0.2 < found.gradient_accuracy.value


def test_a_defense_that_shows_its_logits_gets_neither_attack() -> None:
    found = audited(linear(), threat=EPS)
    assert not {"inner-logits", "hop-skip-jump"} & {attack.name for attack in found.attacks}


def test_where_scores_tell_nothing_decisions_do() -> None:
    pytest.importorskip("foolbox")
    found = audited(Defense(OneHot(), outputs="probabilities"), threat=ThreatModel(0.1))
    assert found.verdict is Verdict.MASKED
    assert max(found.attacks, key=lambda attack: len(attack.broken)).name == "hop-skip-jump"


def test_without_foolbox_the_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "foolbox_installed", lambda: False)
    attack = audited(Defense(OneHot(), outputs="probabilities"), threat=EPS).attack("hop-skip-jump")
    assert attack.status == "skipped"
    assert "pip install 'pytest-gradmask[decision]'" in attack.note
