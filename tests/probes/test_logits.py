"""Logits whose scale hinders an attack."""

from __future__ import annotations

import pytest
from torch import nn

from pytest_gradmask.probes.logits import saturated_logits, tiny_logits
from pytest_gradmask.verdict.results import Finding
from tests.probes.probe_toys import Scale, traced
from tests.toys import linear


def scaled(factor: float, offset: float = 0.0) -> list[Finding]:
    trace = traced(nn.Sequential(linear(), Scale(factor, offset)).eval())
    return [*saturated_logits(trace), *tiny_logits(trace)]


@pytest.mark.parametrize("factor", [1, 0.01, 0.001])
def test_usual_logits_have_no_finding(factor: float) -> None:
    assert scaled(factor) == []


@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_saturated_logits_do_not_undermine_attacks(factor: float) -> None:
    (finding,) = scaled(factor)
    assert (finding.id, finding.undermines_attacks) == ("saturated-logits", False)
    assert "12 of 12 images" in finding.message


@pytest.mark.parametrize(("factor", "offset"), [(1e-6, 0.0), (1.0, 1e7)], ids=["small", "far from zero"])
def test_tiny_logits_do_not_undermine_attacks(factor: float, offset: float) -> None:
    (finding,) = scaled(factor, offset)
    assert (finding.id, finding.undermines_attacks) == ("tiny-logits", False)
