"""The paper's figures beside ours: recording, storing and showing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audits.claims import CLAIMS, merge
from audits.reproduction import DOCS, markdown, outcome, stored

AUDIT = """
    def test_it(reproduction):
        reproduction.check("3", holds={holds}, ours="AutoAttack 12 %", images=7, details={{"accuracies": {{}}}})
"""


def record(claim: str = "3", test: str = "a", *, holds: bool = True, **details: Any) -> dict[str, Any]:
    """What a test of a claim leaves."""
    about = {"images": 7, "data": "cifar10", "budget": "smoke", "seed": 0, "versions": {"torch": "2.6"}}
    return {"claim": claim, "test": test, "holds": holds, "ours": f"ours of {test}", "details": details, **about}


# recording


def test_claim_that_holds_passes_and_is_shown(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT.format(holds=True))
    result = pytester.runpytest("-p", "audits.conftest", "--store-claims=claims.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*the paper's claims*",
            "3. A randomized ensemble*",
            "*90.8*18.2*",
            "*holds: AutoAttack 12 % (7 images)  test_it",
        ]
    )
    (found,) = json.loads((pytester.path / "claims.json").read_text())
    assert found["holds"] is True
    assert found["test"].endswith("::test_it")
    assert (found["data"], found["budget"], found["seed"], found["images"]) == ("embedded", "smoke", 0, 7)
    assert {"torch", "timm", "python", "pyautoattack"} <= set(found["versions"])


def test_claim_that_does_not_hold_fails_with_both_figures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT.format(holds=False))
    result = pytester.runpytest("-p", "audits.conftest")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*claim 3 *", "*paper:*90.8*", "*here:  AutoAttack 12 % (7 images)", "*DOES NOT HOLD*"]
    )


def test_expected_failure_is_shown_and_stored(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"import pytest\n\n@pytest.mark.xfail(strict=True)\n{AUDIT.format(holds=False).lstrip()}"[:-1].replace(
            "\n    ", "\n"
        )
    )
    result = pytester.runpytest("-p", "audits.conftest", "--store-claims=claims.json")
    result.assert_outcomes(xfailed=1)
    (found,) = json.loads((pytester.path / "claims.json").read_text())
    assert found["holds"] is False


def test_workers_tell_the_controller(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT.format(holds=True))
    result = pytester.runpytest("-p", "audits.conftest", "--store-claims=claims.json", "-n", "2")
    result.stdout.fnmatch_lines(["*the paper's claims*"])
    assert len(json.loads((pytester.path / "claims.json").read_text())) == 1


def test_unknown_claim_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT.format(holds=True).replace('"3"', '"99"'))
    pytester.runpytest("-p", "audits.conftest").assert_outcomes(failed=1)


@pytest.mark.parametrize(("count", "outcomes"), [(49, {"skipped": 1}), (50, {"passed": 1})])
def test_close_figures_need_many_images(pytester: pytest.Pytester, count: int, outcomes: dict[str, int]) -> None:
    pytester.makepyfile(
        f"""
        import pytest, torch
        from pytest_gradmask.plugin.fixtures import EvalBatch

        @pytest.fixture
        def eval_batch():
            return EvalBatch(torch.zeros({count}, 3, 4, 4), torch.zeros({count}))

        def test_it(many_images):
            assert len(many_images.labels) == {count}
        """
    )
    pytester.runpytest("-p", "audits.conftest").assert_outcomes(**outcomes)


# storing


def test_results_of_the_same_test_are_replaced_and_others_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "claims.json"
    merge(file, [record("3", "b"), record("1", "z")])
    merge(file, [record("3", "b", holds=False), record("3", "a")])
    found = json.loads(file.read_text())
    assert [(entry["claim"], entry["test"], entry["holds"]) for entry in found] == [
        ("1", "z", True),
        ("3", "a", True),
        ("3", "b", False),
    ]
    assert [path.name for path in file.parent.iterdir()] == ["claims.json"]


# telling


@pytest.mark.parametrize(
    ("held", "expected"),
    [([], "not measured"), ([True], "reproduced"), ([False], "not reproduced"), ([True, False], "in 1 of 2 cases")],
)
def test_outcome_of_a_claim(held: list[bool], expected: str) -> None:
    assert outcome([record(holds=holds) for holds in held]) == expected


def test_outcome_of_a_question_is_its_answer() -> None:
    assert outcome([record("A")]) == "yes"
    assert outcome([record("A", holds=False)]) == "no"
    assert outcome([record("A"), record("A", holds=False)]) == "in 1 of 2 cases"


def test_page_has_every_claim_and_sections_for_the_measured_ones() -> None:
    audit = {
        "defense": "resnet", "verdict": "MASKED",
        "accuracies": {"clean": [0.9, 0.8, 0.95], "bpda": [0.0, 0.0, 0.1]},
    }  # fmt: skip
    page = markdown([record("1", audits=[audit]), record("5", holds=False, accuracies={"mirrored": [0.5, 0.4, 0.6]})])
    assert all(f"| {claim.text} | {claim.paper} |" in page for claim in CLAIMS.values())
    assert "## Claim 1\n" in page
    assert "| resnet | `MASKED` | 90.0 % [80.0, 95.0] | 0.0 % [0.0, 10.0] |" in page
    assert "- **Does not hold**: ours of a." in page
    assert "| mirrored | 50.0 % [40.0, 60.0] |" in page
    assert "## Claim 2\n" not in page
    assert "<sub>Measured on 7 images of cifar10, budget smoke, seed 0, torch 2.6.</sub>" in page


def test_pictures_are_drawn_alike_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from audits.pictures import draw

    shares = {key: [0.5, 0.4, 0.6] for key in ("clean", "gradient", "bpda")}
    cells = [{"rate": rate, "epochs": 1.0, "accuracies": shares} for rate in ("1e-6", "1e-4")]
    records = [
        record("1", audits=[{"defense": "a", "accuracies": shares}]),
        record("5", accuracies={"mirrored": [0.5, 0.4, 0.6]}),
        record("6", cells=cells),
        record("7", cells=[{"defense": "vgg-standard", "masked": True, "accuracies": shares}]),
        record("B", attack="bpda", fooled={"a": {"a": [1.0, 1.0, 1.0]}}),
    ]
    for folder in ("first", "second"):
        draw(records, tmp_path / folder)
    files = [f"claim-{number}.svg" for number in ("1", "5", "6", "7", "B")]
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == files
    assert all((tmp_path / "first" / n).read_bytes() == (tmp_path / "second" / n).read_bytes() for n in files)


def test_page_in_docs_shows_stored_results() -> None:
    assert (DOCS / "reproduction.md").read_text() == markdown(stored())
