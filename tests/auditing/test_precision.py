"""Attacks in a lower precision: what they return is scored in the defense's own, and verdicts stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask import InputError, ThreatModel, Verdict
from tests.toys import Detach, KillGradient, Quantize, audited, linear, masked


class Watch(nn.Module):
    """A linear model that notes in which type it computes, and whether TensorFloat-32 was allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()
        self.seen: set[tuple[torch.dtype, bool, bool]] = set()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        tf32 = torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        self.seen.add((logits.dtype, tf32, images.requires_grad))
        return logits


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda: masked(KillGradient), Verdict.MASKED),
        (lambda: masked(Detach), Verdict.MASKED),
        (lambda: masked(Quantize), Verdict.MASKED),
        (linear, Verdict.NOT_MASKED),
    ],
)
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_verdicts_do_not_change(make: Any, verdict: Verdict, precision: Any) -> None:
    result = audited(make(), threat=ThreatModel(0.15), precision=precision)
    assert result.verdict is verdict
    assert result.provenance["precision"] == precision
    assert {attack.status for attack in result.attacks} <= {"done", "skipped", "skipped-early"}


def test_only_attacks_compute_in_it() -> None:
    matmul = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    types = {}
    for precision in ("own", "tf32", "bfloat16"):
        model = Watch().eval()
        audited(model, threat=ThreatModel(0.15), precision=precision)
        types[precision] = model.seen
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == matmul
        assert not torch.is_autocast_enabled("cpu")
    assert {dtype for dtype, _, _ in types["own"]} == {torch.float32}
    assert {dtype for dtype, _, _ in types["bfloat16"]} == {torch.float32, torch.bfloat16}
    assert (torch.bfloat16, all(matmul), True) in types["bfloat16"]
    assert {allowed for _, allowed, _ in types["tf32"]} == {all(matmul), True}


def test_a_success_that_only_bfloat16_sees_does_not_count() -> None:
    """Near the boundary, rounded logits are wrong where exact ones are right."""
    result = audited(linear(), threat=ThreatModel(1e-6), precision="bfloat16")
    assert result.verdict is Verdict.NOT_MASKED
    assert result.robust_accuracy.value == 1


@pytest.mark.parametrize("precision", ["float64", "bf16", None, 16])
def test_unknown_precisions_are_named(precision: Any) -> None:
    with pytest.raises(InputError, match=r"precision=.*own, tf32, bfloat16"):
        audited(linear(), precision=precision)
