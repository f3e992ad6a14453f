"""Inner logits of defenses that change their logits, and defenses without inner logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel, Verdict
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits, find_inner_logits
from tests.toys import IMAGES, KillGradient, audited, convolutional, linear

EPS = ThreatModel(0.15)


class Wrapped(nn.Module):
    """A classifier whose outputs are changed by a function."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.net, self.how = model, how
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        changed = {
            "scaled": lambda: 1000 * logits,
            "saturated": lambda: (1e4 * logits).softmax(1),
            "log-softmax": lambda: logits.log_softmax(1),
            "reversed": lambda: -logits,
            "grouped": lambda: logits[:, :2],
            "as is": lambda: logits,
        }
        result: Tensor = changed[self.how]()
        return result


class OneHot(nn.Module):
    """Returns the class only, as a one-hot vector. No submodule computes logits."""

    def __init__(self) -> None:
        super().__init__()
        layer = linear()[1]
        assert isinstance(layer, nn.Linear)
        self.weight, self.bias = layer.weight, layer.bias
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = nn.functional.linear(images.flatten(1), self.weight, self.bias)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


@pytest.mark.parametrize("how", ["scaled", "saturated"])
@pytest.mark.parametrize(("make", "first"), [(linear, "net.1"), (convolutional, None)])
def test_inner_logits_are_found(how: str, make: object, first: str | None) -> None:
    model = Wrapped(linear() if make is linear else convolutional(), how)
    found = find_inner_logits(model, IMAGES[:8], "probabilities" if how == "saturated" else "logits")
    assert found.startswith("net")
    assert first is None or found == first
    inside = InnerLogits(model, found)
    torch.testing.assert_close(inside(IMAGES), model.net(IMAGES))
    assert not model.get_submodule(found)._forward_hooks


@pytest.mark.parametrize("how", ["as is", "log-softmax", "reversed", "grouped"])
def test_other_changes_have_no_inner_logits(how: str) -> None:
    assert find_inner_logits(Wrapped(linear(), how), IMAGES[:8]) == ""


def test_model_without_submodules_has_no_inner_logits() -> None:
    assert find_inner_logits(OneHot(), IMAGES[:8]) == ""


def test_saturated_softmax_is_bypassed() -> None:
    found = audited(Defense(Wrapped(linear(), "saturated"), outputs="probabilities"), threat=EPS, exhaustive=True)
    assert found.verdict is Verdict.MASKED
    assert found.bypassed == ("all after net.1",)
    assert [operation.name for operation in found.operations] == ["torch.softmax"]
    for attack in ("inner-logits", "bpda-operations"):
        assert found.accuracy_under(attack).value < 0.2 < found.gradient_accuracy.value


def test_inner_logits_with_bypassed_front_end() -> None:
    model = Wrapped(nn.Sequential(KillGradient(), linear()), "scaled")
    found = audited(model, threat=EPS, exhaustive=True)
    assert found.verdict is Verdict.MASKED
    assert found.accuracy_under("inner-logits").value < 0.2 < found.gradient_accuracy.value


def test_plain_logits_need_no_further_attack() -> None:
    found = audited(linear(), threat=EPS)
    assert not {"inner-logits", "rays"} & {attack.name for attack in found.attacks}


def test_decision_based_attack_without_useful_scores() -> None:
    found = audited(Defense(OneHot(), outputs="probabilities"), threat=ThreatModel(0.1), exhaustive=True)
    assert found.verdict is Verdict.MASKED
    for attack in ("rays", "bpda-operations"):
        assert found.accuracy_under(attack).value < 0.5 < found.gradient_accuracy.value
