"""The summary after a run: worst verdicts first, and cut short for many audits."""

from __future__ import annotations

from typing import Any

from pytest_gradmask.report.text import summary
from tests.report.report_toys import plain_audit, plain_run


def many(masked: int = 0, unclear: int = 0, fine: int = 0) -> dict[str, Any]:
    verdicts = ["NOT_MASKED"] * fine + ["INCONCLUSIVE"] * unclear + ["MASKED"] * masked
    return plain_run(*(plain_audit(f"t.py::test_{n:03}", verdict) for n, verdict in enumerate(verdicts)))


def test_worst_verdicts_come_first() -> None:
    header, *lines, empty, counts = summary(many(2, 1, 2), every=False)
    rows = [line for line in lines if not line.startswith(" ")]
    assert lines.index("  it is INCONCLUSIVE") == 3  # below its row
    assert header.split()[0] == "verdict"
    assert [(row.split()[0], row[-3:]) for row in rows] == [
        ("MASKED", "003"), ("MASKED", "004"), ("INCONCLUSIVE", "002"), ("NOT_MASKED", "000"), ("NOT_MASKED", "001"),
    ]  # fmt: skip
    assert (empty, counts) == ("", "5 audits: 2 MASKED, 1 INCONCLUSIVE, 2 NOT_MASKED")


def test_many_audits_are_cut_short() -> None:
    run = many(3, 2, 95)
    lines = summary(run, every=False)
    assert len(lines) == 1 + 20 + 2 + 3  # two reasons
    assert lines[-3:] == [
        "... and 80 NOT_MASKED (-v lists every audit)",
        "",
        "100 audits: 3 MASKED, 2 INCONCLUSIVE, 95 NOT_MASKED",
    ]
    assert len(summary(run, every=True)) == 1 + 100 + 2 + 2


def test_twenty_audits_are_all_listed() -> None:
    assert not any(line.startswith("...") for line in summary(many(fine=20), every=False))


def test_a_run_that_is_not_complete_says_why() -> None:
    missing = [f"t.py::test_{letter}" for letter in "abcd"]
    lines = summary(plain_run(plain_audit(), complete=False, exit_status=2, not_run=missing), every=False)
    assert lines[-2:] == [
        "1 audit: 1 NOT_MASKED",
        "The run is not complete: pytest ended with exit status 2, 4 of the selected tests or files did not run "
        "(t.py::test_a, t.py::test_b, t.py::test_c, ...).",
    ]
    assert summary(plain_run(complete=False, exit_status=2), every=False)[0] == "0 audits: none ran"


def test_raised_and_cached_audits_in_the_table() -> None:
    raised = plain_audit(verdict="INCONCLUSIVE", clean_accuracy=None, gradient_attacks=None, all_attacks=None, gap=None)
    _, first, _, second, *_ = summary(plain_run(raised, plain_audit(cached=True)), every=False)
    assert first.split() == ["INCONCLUSIVE", "-", "-", "-", "-", "0.0", "test_it.py::test_toy"]
    assert second.split()[-2:] == ["cached", "test_it.py::test_toy"]
