"""How often verdicts are wrong, by simulation and enumeration."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom

from pytest_gradmask.verdict import rule
from pytest_gradmask.verdict.results import AttackResult, Verdict
from pytest_gradmask.verdict.stats import clopper_pearson


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated audits ask for the same few bounds again and again."""
    for name in ("lower_bound", "upper_bound", "above_p"):
        monkeypatch.setattr(rule, name, functools.cache(getattr(rule, name)))


def judge(total: int, attacks: Sequence[AttackResult], margin: float) -> Verdict:
    return rule.decide([True] * total, attacks, [], margin=margin, confidence=0.99).verdict


def simulate(audits: int, total: int, chances: Sequence[float], placebo: float, margin: float) -> dict[Verdict, int]:
    """Verdicts of simulated audits in which every attack breaks every image independently."""
    random = np.random.default_rng(0)
    counts = dict.fromkeys(Verdict, 0)
    for _ in range(audits):
        hits = [np.flatnonzero(random.random(total) < chance).tolist() for chance in (*chances, placebo)]
        attacks = [
            AttackResult(f"adaptive-{number}", "adaptive", broken=tuple(broken))
            for number, broken in enumerate(hits[:-1])
        ]
        attacks += [AttackResult("placebo", "placebo", broken=tuple(hits[-1]))]
        counts[judge(total, attacks, margin)] += 1
    return counts


@pytest.mark.longer
@pytest.mark.parametrize("chance", [0.01, 0.05, 0.3])
@pytest.mark.usefixtures("quick")
def test_rate_of_wrong_masked(chance: float) -> None:
    """Without masking, at most one audit in a hundred says MASKED."""
    # The smallest of margins, so that the test alone has to prevent false alarms.
    # The placebo has the budget of all four attacks.
    counts = simulate(2000, total=100, chances=[chance] * 4, placebo=1 - (1 - chance) ** 4, margin=0.001)
    assert clopper_pearson(counts[Verdict.MASKED], 2000, 0.999)[0] <= 0.01  # certainly no more than one in a hundred


@pytest.mark.longer
@pytest.mark.usefixtures("quick")
def test_a_gap_of_20_points_is_found_on_200_images() -> None:
    counts = simulate(300, total=200, chances=[0.2, 0.02], placebo=0.01, margin=0.05)
    assert counts[Verdict.MASKED] >= 285


@pytest.mark.parametrize(("total", "margin"), [(30, 0.25), (200, 0.05), (500, 0.02)])
def test_rate_of_wrong_not_masked(total: int, margin: float) -> None:
    """A gap as large as the margin is called none at most once in a hundred."""
    chance = 0.0
    for broken in range(round(margin * total) + 1):
        attacks = [AttackResult("bpda", "adaptive", broken=tuple(range(broken))), AttackResult("placebo", "placebo")]
        if judge(total, attacks, margin) is Verdict.NOT_MASKED:
            chance += binom.pmf(broken, total, margin)
    assert 0 < chance <= 0.01
