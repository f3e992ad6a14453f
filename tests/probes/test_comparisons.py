"""Findings from what the attacks of an audit broke."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from pytest_gradmask.probes.comparisons import compare_attacks
from pytest_gradmask.threat import Access
from pytest_gradmask.verdict.results import AttackResult, Kind, Operation

ACCESS: dict[str, Access] = {
    "bpda-operations": "bypass",
    "bpda": "bypass",
    "transfer-backbone": "surrogate",
    "square": "scores",
    "zero-order": "scores",
    "rays": "labels",
    "pgd-reversed": "gradient",
}


def result(name: str, kind: Kind, broken: Collection[int] = ()) -> AttackResult:
    access = ACCESS.get(name, "gradient")
    return AttackResult(name, kind, access=access, attacked=tuple(range(100)), broken=tuple(broken))


def audit(placebo: Collection[int] = (), **adaptive: Collection[int]) -> list[AttackResult]:
    attacks = [result(name, "adaptive", adaptive.get(name.replace("-", "_"), ())) for name in ACCESS]
    return [result("apgd-ce", "gradient", range(90, 100)), *attacks, result("placebo", "placebo", placebo)]


def ids(results: Sequence[AttackResult], total: int = 100) -> list[str]:
    findings = compare_attacks(results, total, confidence=0.99)
    assert not any(finding.undermines_attacks for finding in findings)
    return [finding.id for finding in findings]


def test_attacks_that_agree_are_no_finding() -> None:
    assert ids(audit()) == []
    assert ids([]) == []


def test_a_small_difference_is_no_finding() -> None:
    assert ids(audit(square=range(2), bpda=range(3), transfer_backbone=range(1), placebo=[5])) == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param("square", ["black-box-beats-white-box", "transfer-failure"], id="square"),
        pytest.param("zero_order", ["black-box-beats-white-box", "transfer-failure"], id="zero-order"),
        pytest.param("rays", ["black-box-beats-white-box", "transfer-failure"]),
        pytest.param("transfer_backbone", ["transfer-beats-white-box"], id="transfer"),
        pytest.param("bpda", ["bypass-beats-white-box"], id="bpda"),
        pytest.param("pgd_reversed", ["misleading-loss"], id="reversed"),
    ],
)
def test_an_attack_that_beats_gradients_is_a_finding(name: str, wanted: list[str]) -> None:
    """An attack that breaks what gradients do not is a finding."""
    results = audit(**{name: range(10)})
    assert ids(results) == wanted
    message = compare_attacks(results, 100, 0.99)[0].message
    assert name.replace("_", "-") in message
    assert "break 10 images" in message


def test_operations_that_hide_the_gradient_are_named() -> None:
    hidden_by = {"bpda-operations": [Operation("torch.round", "my_defense.py", 14, 1)]}
    broken, other = audit(bpda_operations=range(10)), audit(bpda=range(10))
    (finding,) = compare_attacks(broken, 100, 0.99, hidden_by=hidden_by)
    assert finding.id == "hidden-gradient"
    assert (
        "hidden by `torch.round` at my_defense.py:14: with natural gradients, bpda-operations break" in finding.message
    )
    assert [found.id for found in compare_attacks(other, 100, 0.99, hidden_by=hidden_by)] == ["bypass-beats-white-box"]


def test_what_the_placebo_breaks_too_is_no_finding() -> None:
    """What the placebo breaks too is budget and no finding of its own."""
    assert ids(audit(square=range(10), bpda=range(10), placebo=range(10))) == ["not-converged"]


def test_what_a_gradient_attack_broke_already_is_no_finding() -> None:
    assert ids(audit(bpda=range(90, 100))) == []


def test_surrogates_that_break_as_much_do_not_fail() -> None:
    assert ids(audit(square=range(10), bpda=range(12))) == ["black-box-beats-white-box", "bypass-beats-white-box"]


@pytest.mark.parametrize(
    ("total", "broken", "found"), [(20, 1, False), (20, 2, True), (1000, 5, False), (1000, 10, True)]
)
def test_a_budget_that_breaks_more_has_not_converged(total: int, broken: int, found: bool) -> None:
    assert ("not-converged" in ids(audit(placebo=range(broken)), total)) == found


def test_an_attack_that_did_not_finish_says_nothing() -> None:
    failed = AttackResult(
        "square", "adaptive", access="scores", attacked=tuple(range(90)), broken=tuple(range(20)), status="failed"
    )
    assert ids([*audit(), failed]) == []


@pytest.mark.parametrize(
    ("access", "wanted"),
    [
        ("gradient", ["misleading-loss"]),
        ("surrogate", ["transfer-beats-white-box"]),
        ("bypass", ["bypass-beats-white-box"]),
        ("scores", ["black-box-beats-white-box", "transfer-failure"]),
        ("labels", ["black-box-beats-white-box", "transfer-failure"]),
    ],
)
@pytest.mark.parametrize("name", ["square-root-of-bpda", "bpda-mine", "transfer", "mine"])
def test_the_name_of_an_attack_says_nothing(name: str, access: Access, wanted: list[str]) -> None:
    mine = AttackResult(name, "adaptive", access=access, attacked=tuple(range(90)), broken=tuple(range(10)))
    assert ids([*audit(), mine]) == wanted
