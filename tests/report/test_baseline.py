"""A run compared with an earlier one: what is worse, what is chance, what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradmask.errors import InputError
from pytest_gradmask.report.baseline import Comparison, compare, read_baseline
from pytest_gradmask.report.json import write_json
from pytest_gradmask.verdict.stats import holm
from tests.report.report_toys import plain_audit, plain_run

VERDICTS = ("MASKED", "INCONCLUSIVE", "NOT_MASKED")


def judged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What came out of each comparison of one audit."""
    return {row.what: row.judgement for row in compare([before], [now], lambda test: True).rows}


def robust(survivors: int, of: int = 40, first: int = 0) -> list[float]:
    return [float(first <= index < first + survivors) for index in range(of)]


@pytest.mark.parametrize("before", VERDICTS)
@pytest.mark.parametrize("now", VERDICTS)
def test_another_verdict_is_worse_unless_it_is_not_masked(before: str, now: str) -> None:
    found = judged(plain_audit(verdict=before), plain_audit(verdict=now))["verdict"]
    assert found == ("same" if before == now else "better" if now == "NOT_MASKED" else "worse")


def test_the_same_audit_is_no_worse_than_itself() -> None:
    comparison = compare([plain_audit()], [plain_audit()], lambda test: True)
    assert not comparison.failed
    assert comparison.lines() == ["3 same"]


@pytest.mark.parametrize("key", ["robust", "clean"])
@pytest.mark.parametrize(("lost", "expected"), [(0, "same"), (4, "within chance"), (5, "worse"), (-4, "better")])
def test_an_accuracy_is_worse_if_what_was_lost_is_no_chance(key: str, lost: int, expected: str) -> None:
    # Of five images that changed, all were lost: a chance of 1 in 32.
    before, now = plain_audit(robust=robust(20)), plain_audit(robust=robust(20))
    before["per_image"][key], now["per_image"][key] = robust(20), robust(20 - lost)
    assert judged(before, now)[f"{key} accuracy"] == expected


def test_gained_images_count_against_lost_ones() -> None:
    """Images that were gained count against those that were lost."""
    # As many survive as before, but others.
    moved = judged(plain_audit(robust=robust(20)), plain_audit(robust=robust(20, first=10)))
    assert moved["robust accuracy"] != "worse"
    half_lost = plain_audit(robust=robust(20, first=14)), plain_audit(robust=robust(6, first=11))
    assert judged(*half_lost)["robust accuracy"] == "worse"


def test_chances_are_compared_by_their_mean() -> None:
    """Chances of a randomized defense are compared by their mean."""
    before = plain_audit(robust=[0.9] * 40)
    assert judged(before, plain_audit(robust=[0.85, 0.95] * 20))["robust accuracy"] in ("within chance", "better")
    assert judged(before, plain_audit(robust=[0.3] * 40))["robust accuracy"] == "worse"


def test_where_one_run_was_certain_earlier_common_images_count() -> None:
    before = plain_audit(robust=robust(20))
    short = plain_audit(robust=robust(10, of=10))
    assert judged(before, short)["robust accuracy"] == "same"
    short["per_image"]["robust"] = [0] * 10
    assert judged(before, short)["robust accuracy"] == "worse"


def test_robust_accuracy_of_a_masked_audit() -> None:
    """A MASKED audit has no robust accuracy to compare unless it is exhaustive."""
    before, now = (plain_audit(verdict="MASKED", robust=robust(number)) for number in (20, 0))
    assert judged(before, now) == {"clean accuracy": "same", "verdict": "same"}
    for audit in (before, now):
        audit["exhaustive"] = True
    assert judged(before, now)["robust accuracy"] == "worse"


def test_changed_audits_share_the_error() -> None:
    """Several audits share the error and unchanged ones have no part in it."""

    def run(lost: int, audits: int) -> list[dict[str, Any]]:
        return [plain_audit(f"test_it.py::test_{n}", robust=robust(20 - lost)) for n in range(audits)]

    def worse(comparison: Comparison) -> int:
        return sum(row.judgement == "worse" for row in comparison.rows)

    same = run(0, 1)
    others = [plain_audit(f"test_it.py::test_other_{n}") for n in range(50)]
    assert worse(compare([*run(0, 1), *others], [*run(5, 1), *others], lambda test: True)) == 1
    assert worse(compare(run(0, 2), run(5, 2), lambda test: True)) == 0  # each is p = 1/32, twice
    assert worse(compare(run(0, 2), run(6, 2), lambda test: True)) == 2
    assert worse(compare(same, same, lambda test: True)) == 0


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_between_none_and_bonferroni(p_values: list[float]) -> None:
    """Holm is between no correction and Bonferroni and keeps order."""
    adjusted = holm(p_values)
    for p, more in zip(p_values, adjusted, strict=True):
        assert p <= more <= max(p, min(1.0, len(p_values) * max(p_values)))
    ranks = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[rank] for rank in ranks] == sorted(adjusted)
    if p_values:
        assert adjusted[ranks[0]] == min(1.0, len(p_values) * p_values[ranks[0]])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("eps", {"settings": {"threat": {"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]}}}),
        ("norm", {"settings": {"threat": {"norm": "L2", "eps": 0.1, "bounds": [0.0, 1.0]}}}),
        ("bounds", {"settings": {"threat": {"norm": "Linf", "eps": 0.1, "bounds": [0.0, 2.0]}}}),
        ("budget", {"settings": {"budget": "ci"}}),
        ("seed", {"settings": {"seed": 1}}),
        ("images_hash", {"settings": {"images_hash": "1" * 64}}),
        ("margin", {"margin": 0.1}),
        ("confidence", {"confidence": 0.9}),
        ("exhaustive", {"exhaustive": True}),
        ("attempt", {"attempt": 2}),
    ],
)
def test_other_settings_cannot_be_compared(what: str, changes: dict[str, Any]) -> None:
    comparison = compare([plain_audit()], [plain_audit(**changes)], lambda test: True)
    assert [(row.what, row.judgement) for row in comparison.rows] == [(what, "not comparable")]

    assert comparison.failed


def test_a_baseline_without_attempts_has_first_ones() -> None:
    old = plain_audit()
    del old["attempt"]
    comparison = compare([old], [plain_audit()], lambda test: True)
    assert {row.judgement for row in comparison.rows} == {"same"}


def test_other_versions_and_another_device_can_be_compared() -> None:
    other = plain_audit(settings={"versions": {"torch": "9"}, "device": "H100"})
    assert set(judged(plain_audit(), other).values()) == {"same"}


def test_an_audit_that_raised_is_judged_by_its_verdict() -> None:
    raised = plain_audit(verdict="INCONCLUSIVE", provenance={}, per_image={"index": [], "clean": [], "robust": []})
    assert judged(plain_audit(), raised) == {"verdict": "worse"}
    assert judged(raised, plain_audit()) == {"verdict": "better"}


def test_audits_of_one_test_are_matched_in_order() -> None:
    first, second = plain_audit(verdict="MASKED"), plain_audit()
    assert not compare([first, second], [first, second], lambda test: True).failed
    swapped = compare([first, second], [second, first], lambda test: True)
    assert [row.test for row in swapped.failures] == ["test_it.py::test_toy (audit 2)"]


@pytest.mark.parametrize(("missed", "expected"), [(True, "missing"), (False, "not run")])
def test_an_audit_that_is_gone_may_be_a_failure(missed: bool, expected: str) -> None:
    """An audit that is gone is a failure if it should be there."""
    comparison = compare([plain_audit()], [], lambda test: missed)
    assert [row.judgement for row in comparison.rows] == [expected]
    assert comparison.failed is missed


def test_a_new_audit_is_told_and_no_failure() -> None:
    comparison = compare([], [plain_audit()], lambda test: True)
    assert not comparison.failed
    assert "new" in comparison.lines()[1]


def test_the_table_has_failures_first() -> None:
    """The table has failures first and what is the same as a number."""
    before = [plain_audit(f"t.py::test_{n}", robust=robust(20)) for n in "abc"]
    now = [before[0], plain_audit("t.py::test_b", robust=robust(19)), plain_audit("t.py::test_c", robust=robust(5))]
    header, worse, chance, counts = compare(before, now, lambda test: True).lines()
    assert header.split() == ["compared", "what", "baseline", "now", "change", "test"]
    assert worse.startswith("worse")
    assert "50.0%" in worse
    assert "12.5% of 40 (p = " in worse
    assert worse.endswith("test_c")
    assert chance.startswith("within chance")
    assert counts == "1 worse, 1 within chance, 7 same"


def test_a_baseline_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "b.json", plain_run(plain_audit()))
    assert read_baseline(tmp_path / "b.json") == [plain_audit()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is not there"),
        ("{", "cannot be read"),
        ("[]", "is not a file of --gradmask-json"),
        ("{}", "is not a file of --gradmask-json"),
        (json.dumps({"version": 99, "audits": []}), "has version 99, not 2 or 1"),
        (json.dumps({"version": 1, "audits": [{}]}), "is not a file of --gradmask-json"),
        (json.dumps({"version": 1, "complete": True, "audits": ["x"]}), "is not a file of --gradmask-json"),
        (json.dumps(plain_run(plain_audit(), complete=False)), "is of a run that was not complete"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    file = tmp_path / "b.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=expected) as failure:
        read_baseline(file)
    assert "--gradmask-baseline-update" in str(failure.value)


def version_1(run: dict[str, Any]) -> dict[str, Any]:
    """A run in the words of the first version of the schema."""
    (audit,) = run["audits"]
    gap = {"looks" if key == "analyses" else key: value for key, value in audit["gap"].items()}
    attack = {"status": "spared", "note": "the verdict was certain"}
    finding = {"id": "attack-fails-unit-test", "message": "", "undermines_attacks": True, "link": ""}
    old = {**audit, "gap": gap, "robust_accuracy": {"square": attack}, "findings": [finding]}
    return {**run, "version": 1, "audits": [old]}


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text(json.dumps(version_1(plain_run(plain_audit(robust=robust(20))))))
    (audit,) = read_baseline(file)
    assert audit["gap"] == plain_audit()["gap"]
    assert audit["robust_accuracy"]["square"]["status"] == "skipped-early"
    assert [finding["id"] for finding in audit["findings"]] == ["attack-fails-binarization-test"]
    assert set(judged(audit, plain_audit(robust=robust(20))).values()) == {"same"}
    assert judged(audit, plain_audit(robust=robust(2)))["robust accuracy"] == "worse"
