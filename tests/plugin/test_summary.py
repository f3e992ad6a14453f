"""The summary after a run: worst verdicts first, and cut short for many audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.report.text import fitted, shortened, summary
from tests.plugin.terminal import watch
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


class TestTheWidthOfATerminal:
    RUN = plain_run(
        plain_audit("folder/test_long_name_of_a_file.py::test_it", "MASKED"),
        plain_audit("t.py::test_two", "INCONCLUSIVE", reasons=["too few images, " * 9 + "as it seems"]),
    )

    def test_where_all_fits_an_audit_has_one_line(self) -> None:
        lines = summary(self.RUN, every=False, width=300)
        assert lines == summary(self.RUN, every=False)
        assert lines[1].endswith("  folder/test_long_name_of_a_file.py::test_it")

    def test_elsewhere_the_test_has_its_own(self) -> None:
        lines = summary(self.RUN, every=False, width=80)
        assert max(map(len, lines)) <= 80
        assert lines[0].endswith("seconds")
        assert lines[1].startswith("MASKED ")
        assert lines[2] == "  folder/test_long_name_of_a_file.py::test_it"
        assert lines[4] == "  t.py::test_two"
        assert lines[5].startswith("  too few images")
        assert lines[7] == "  seems"

    def test_long_names_and_sentences(self) -> None:
        assert shortened("test_it.py::test_it", 19) == "test_it.py::test_it"
        assert shortened("test_it.py::test_it", 13) == "test_...st_it"
        assert fitted("  one two three", 8) == ["  one", "  two", "  three"]
        assert fitted("written to a-long-name.json", 12) == ["written to", "  a-long-name.json"]
        assert fitted("written to a-long-name.json", None) == ["written to a-long-name.json"]

    @pytest.mark.longer
    @pytest.mark.parametrize("columns", [80, 120])
    def test_in_a_terminal(self, tmp_path: Path, columns: int) -> None:
        (tmp_path / "test_a_file_with_a_long_name.py").write_text(AUDITS)
        command = ("pytest", "--gradmask", "--gradmask-device=cpu", "--tb=no", "-p", "no:randomly")
        rows = watch(command, columns, tmp_path, {}).rows
        start = next(number for number, row in enumerate(rows) if "gradient masking audits" in row)
        _, header, *table = rows[start : rows.index("2 audits: 2 INCONCLUSIVE")]
        name = "test_a_file_with_a_long_name.py::test_the_first"
        if columns == 80:
            assert (header.split()[-1], table[1], table[3][:2]) == ("seconds", f"  {name}", "  ")
        else:
            assert (header.split()[-1], table[0].split()[-1]) == ("test", name)
        assert not [row for row in table if row and row[0].islower()]  # no word is broken by the end of a row


AUDITS = """
import torch
from pytest_gradmask import Defense

class Toy(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1)

def test_the_first(gradmask):
    gradmask.audit(Toy().eval(), torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long))

def test_the_second(gradmask):
    gradmask.audit(Toy().eval(), torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long))
"""
