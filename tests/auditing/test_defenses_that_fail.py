"""Audits of defenses that raise, break down or answer NaN under attack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_gradmask import ThreatModel, Verdict
from tests.toys import (
    IMAGES,
    RaisingBackward,
    audited,
    linear,
)

pytestmark = pytest.mark.usefixtures("no_operations_found")


class BackwardRaises(nn.Module):
    """Cannot be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = linear()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return RaisingBackward.apply(self.backbone(images))  # type: ignore[no-any-return]


class RefusesGradients(BackwardRaises):
    """Raises where a gradient might be wanted."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.requires_grad:
            raise RuntimeError("no way back")
        return self.backbone(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [BackwardRaises, RefusesGradients])
@pytest.mark.parametrize("eps", [1e-6, 0.1], ids=["robust", "weak"])
def test_attacks_that_raise_are_never_a_pass(make: Callable[[], nn.Module], eps: float) -> None:
    result = audited(make().eval(), threat=ThreatModel(eps))
    assert result.verdict is Verdict.INCONCLUSIVE
    failed = {attack.name for attack in result.attacks if attack.status == "failed"}
    assert {"pgd", "placebo"} <= failed
    note = result.attack("pgd").note
    assert "RuntimeError" in note
    assert note.endswith(": no way back")
    assert f"pgd failed: {note}" in result.reasons
    assert "no-gradient" in {finding.id for finding in result.findings}


def test_a_defense_that_breaks_down_under_attack() -> None:
    class Weary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.seen = linear(), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen += len(images)
            if self.seen > 3000:
                raise MemoryError("too much")
            return self.backbone(images)  # type: ignore[no-any-return]

    result = audited(Weary().eval(), threat=ThreatModel(1e-6))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "failed" in {attack.status for attack in result.attacks} or "stateful" in {
        finding.id for finding in result.findings
    }


def test_nan_logits_under_attack_count_as_broken() -> None:
    class Touchy(nn.Module):
        """NaN for every image that is off the grid of 8 bits."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = linear()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            off = ((images * 255 - (images * 255).round()).abs() > 1e-3).flatten(1).any(1, keepdim=True)
            return self.backbone(images) + torch.where(off, torch.nan, 0.0)  # type: ignore[no-any-return]

    images = (IMAGES * 255).round() / 255
    result = audited(Touchy().eval(), images)
    assert result.clean_accuracy.value == 1
    assert result.attack("apgd-ce").broken
    assert result.verdict is Verdict.INCONCLUSIVE
    assert [finding.id for finding in result.findings if finding.undermines_attacks] == [
        "behaves-differently",
        "nan-gradient",
        "unbounded-attack-fails",
    ]
