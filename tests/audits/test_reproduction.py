"""The paper's figures beside ours: recording, storing and showing them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from audits import claims
from audits.claims import CLAIMS, merge, stored
from audits.reproduction import DOCS, about, commands, filled, markdown, outcome, verdict
from audits.short import figures_differ, pgd_fails, shortened
from audits.trained_masks.claims import records as trained_records
from audits.trained_masks.evidence import load
from audits.trained_masks.recipes import load_recipes

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


def test_short_version_of_a_measurement_is_shown_and_not_stored(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(AUDIT.format(holds=True).replace("images=7", "images=7, stored=False"))
    result = pytester.runpytest("-p", "audits.conftest", "--store-claims=claims.json")
    result.stdout.fnmatch_lines(["*holds: AutoAttack 12 % (7 images)  test_it"])
    assert not (pytester.path / "claims.json").exists()


@pytest.mark.longer
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
    [
        ([], "not measured"),
        ([True], "reproduced"),
        ([False], "not reproduced"),
        ([True, False, True], "reproduced in 2 of 3 cases, not reproduced in 1"),
    ],
)
def test_outcome_of_a_claim(held: list[bool], expected: str) -> None:
    assert outcome("3", [record(holds=holds) for holds in held]) == expected


def test_outcome_of_a_question_is_its_answer() -> None:
    assert outcome("A", [record("A")]) == "answered: yes"
    assert outcome("A", [record("A", holds=False)]) == "answered: no"
    assert outcome("A", [record("A"), record("A", holds=False)]) == "answered: yes in 1 of 2 cases, no in 1"
    assert outcome("open question 1", [record("3")]) == "answered: no"
    assert outcome("open question 1", []) == "not measured"


@pytest.mark.parametrize(("pgd", "expected"), [((0.81, 0.7, 0.9), True), ((0.5, 0.39, 0.6), False)])
def test_claim_4_is_contradicted_where_bounds_exclude_it(pgd: tuple[float, ...], expected: bool) -> None:
    shares = {"clean": [0.86, 0.76, 0.93], "PGD on the whole ensemble": list(pgd)}
    assert pgd_fails(record("4", holds=False, accuracies=shares)) is expected
    assert verdict(record("4", holds=False, accuracies=shares)) == ("contradicted" if expected else "not reproduced")
    assert not pgd_fails(record("5", accuracies=shares))


@pytest.mark.parametrize(
    ("autoattack", "expected"), [([0.64, 0.5, 0.77], "not reproduced"), ([0.9, 0.8, 0.95], "reproduced")]
)
def test_figures_of_claim_3_are_compared_by_their_bounds(autoattack: list[float], expected: str) -> None:
    shares = {"clean": [0.9, 0.8, 0.95], "autoattack": autoattack, "bpda": [0.3, 0.2, 0.4], "arc": [0.2, 0.1, 0.3]}
    (found,) = figures_differ([record("3", audits=[{"defense": "adversarial-ensemble", "accuracies": shares}])])
    assert found["verdict"] == expected
    assert "(arc) 20.0 % [10.0, 30.0]" in found["ours"]
    assert figures_differ([record("3", audits=[{"defense": "standard-ensemble", "accuracies": shares}])]) == []


def test_page_has_every_claim_and_sections_for_the_measured_ones() -> None:
    audit = {
        "defense": "resnet", "verdict": "MASKED",
        "accuracies": {"clean": [0.9, 0.8, 0.95], "bpda": [0.0, 0.0, 0.1]},
    }  # fmt: skip
    audits = [
        record("1", audits=[audit]),
        record("1", "b[vgg]"),
        record("5", holds=False, accuracies={"mirrored": [0.5, 0.4, 0.6]}),
    ]
    page = markdown(audits, load())
    assert all(f"| {claim.text} | {claim.paper} |" in page for claim in CLAIMS.values())
    assert "## Claim 1\n" in page
    assert "| resnet | `MASKED` | 90.0 % [80.0, 95.0] | 0.0 % [0.0, 10.0] |" in page
    assert "- Not reproduced: ours of a." in page
    assert "- Reproduced: vgg: ours of b[vgg]." in page
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


def test_gains_are_drawn_alike_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from audits.pictures import draw_gains

    for name in ("first.svg", "second.svg"):
        draw_gains([(0.1, 0.0, 17), (5.0, 0.6, 33), (200.0, 1.0, 49), (3.0, 0.5, 33)], tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert "33 convolutions" in (tmp_path / "first.svg").read_text()


def test_page_in_docs_shows_stored_results() -> None:
    page = (DOCS / "reproduction.md").read_text()
    assert page == markdown(stored(), load())
    assert page == markdown(stored(), load()), "the same results make the same page"


@pytest.mark.parametrize("number", CLAIMS)
def test_every_claim_has_a_whole_row(number: str) -> None:
    (line,) = [row for row in (DOCS / "reproduction.md").read_text().splitlines() if row.startswith(f"| [{number}](")]
    _, _, paper, ours, images, found, commands = (cell.strip() for cell in line.strip("|").split("|"))
    assert paper
    assert re.search(r"\d % \[[\d.]+, [\d.]+\]", ours), "a figure with its bounds"
    assert re.fullmatch(r"\d+( or \d+)*", images)
    assert re.match(r"\*\*(reproduced|not reproduced|contradicted|answered: \w)", found)
    assert re.match(r"`(pytest audits/|python -m audits\.)", commands)


def test_a_row_shows_one_case_of_each_verdict() -> None:
    few, many = record("5", "a") | {"images": 7}, record("5", "b") | {"images": 100}
    audits = [few, many, record("5", "c", holds=False)]
    page = markdown(audits, load())
    (row,) = [line for line in page.splitlines() if line.startswith("| [5](")]
    assert "ours of b" in row
    assert "ours of c" in row
    assert "ours of a" not in row
    assert "1 more case [below](#claim-5)" in row
    section = page.partition("## Claim 5\n")[2].partition("\n## ")[0]
    assert all(f"ours of {name}" in section for name in "abc")


def test_rows_are_those_of_the_paper() -> None:
    numbered = [f"{kind} {place}" for kind in ("experiment", "next check", "open question") for place in (1, 2, 3)]
    assert list(CLAIMS) == [*"1234567", *"ABC", *numbered]


def test_commands_name_what_is_there() -> None:
    recipes = load_recipes()
    for found in [*stored(), *trained_records(load())]:
        for command in commands(found):
            words = command.split()
            if words[0] == "pytest":
                assert (DOCS.parent / words[1]).exists()
                assert (DOCS.parent / words[-1].partition("=")[2]).exists()
            if "train" in words:
                assert words[words.index("train") + 1] in recipes


def test_a_claim_that_shares_measurements_counts_them() -> None:
    records = [record("3"), record("4"), record("C"), record("5")]
    assert about("open question 1", records) == records[:3]


def test_a_figure_in_the_text_comes_from_a_result() -> None:
    evidence = load()
    name = "deep-17-adamw-1e-4"
    wanted = evidence.last(name).pgd
    assert filled(f"{{{name}:pgd}} of {{parts}}", evidence, {"parts": "all"}) == (
        f"{100 * wanted.value:.1f} % [{100 * wanted.low:.1f}, {100 * wanted.high:.1f}] of all"
    )
    with pytest.raises(KeyError):
        filled("{no-such-run:pgd}", evidence, {})


def test_a_sweep_is_shown_by_some_of_its_cells() -> None:
    shares = {"gradient": [0.5, 0.4, 0.6], "bpda": [0.1, 0.0, 0.2]}
    cells = [{"defense": name, "accuracies": shares} for name in ("1e-6, 1 epochs", "1e-4, 1 epochs")]
    line = shortened(record("6", cells=cells))
    assert line == "1e-6, 1 epochs: gradient attacks 50.0 % [40.0, 60.0], BPDA 10.0 % [0.0, 20.0]"


def expected_failures() -> list[str]:
    """The tests of claims that are expected to fail, by the name that their marks give."""
    sources = [file.read_text() for file in sorted(Path(claims.__file__).parent.glob("test_*.py"))]
    return [name for source in sources for name in re.findall(r'not_reproduced\(\s*"([^"]+)"', source)]


def test_claims_are_expected_to_fail() -> None:
    assert len(expected_failures()) >= 3


@pytest.mark.parametrize("name", expected_failures())
def test_expected_failure_has_its_figures(name: str) -> None:
    reason = claims.not_reproduced(name, "because").kwargs["reason"]
    (figures, *_) = [record["ours"] for record in stored() if name in record["test"] and not record["holds"]]
    assert reason.startswith(f"because. Measured: {figures} (")


def test_expected_failure_without_figures() -> None:
    assert claims.not_reproduced("test_of_tomorrow", "why").kwargs["reason"] == "why. Measured: nothing is stored yet"
