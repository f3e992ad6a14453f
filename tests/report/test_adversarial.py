"""Adversarial images in a file: they are what the attack returned, and anyone can ask the defense for them again."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

from pytest_gradmask.report.evidence.adversarial import file_name
from pytest_gradmask.report.evidence.collection import collect_evidence
from pytest_gradmask.report.html import render
from pytest_gradmask.report.json import to_json
from pytest_gradmask.report.records import AuditRecord
from tests.report.evidence_toys import Case, honest_case, masked_case
from tests.report.test_html_report import PROVENANCE
from tests.toys import IMAGES, THREAT

pytestmark = pytest.mark.usefixtures("no_operations_found")


def saved(case: Case, file: Path, **arguments: Any) -> dict[str, Any]:
    return collect_evidence(case.audit, case.defense, IMAGES, case.labels, threat=THREAT, adversarial=file, **arguments)


def page(case: Case, evidence: dict[str, Any]) -> str:
    return html.unescape(
        render([AuditRecord(audit={**to_json(case.audit), "test": "t"}, evidence=evidence)], [], PROVENANCE)
    )


def test_the_file_has_what_the_attack_returned(tmp_path: Path) -> None:
    case = masked_case()
    found = saved(case, tmp_path / "new" / "it.npz")["adversarial"]
    with np.load(tmp_path / "new" / "it.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert (found["file"], found["attack"], found["images"]) == ("it.npz", "bpda", len(arrays["images"]))
    indices = torch.from_numpy(arrays["indices"])
    assert torch.equal(torch.from_numpy(arrays["images"]), IMAGES[indices])
    assert torch.equal(torch.from_numpy(arrays["labels"]), case.labels[indices])
    adversarial = torch.from_numpy(arrays["adversarial"])
    assert 0 < (adversarial - IMAGES[indices]).abs().max() <= THREAT.eps + THREAT.tolerance
    assert torch.equal(case.defense.model(adversarial).argmax(1), torch.from_numpy(arrays["predictions"]))
    assert (arrays["predictions_clean"] == arrays["labels"]).all()
    assert (arrays["broken"] == (arrays["predictions"] != arrays["labels"])).all()
    assert found["broken"] == arrays["broken"].sum() > 3
    assert (str(arrays["attack"]), str(arrays["norm"]), arrays["bounds"].tolist()) == ("bpda", "Linf", [0, 1])
    assert arrays["eps"] == THREAT.eps


def test_the_line_in_the_report_asks_the_model_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = masked_case()
    evidence = saved(case, tmp_path / "it's.npz")
    evidence["adversarial"]["file"] = str(tmp_path / "it's.npz")
    [line] = re.findall(r"<pre[^>]*>(import numpy.*?)</pre>", page(case, evidence))
    exec(line, {"model": case.defense.model})
    answer, label = re.findall(r"\[(\d+)\]", capsys.readouterr().out)
    assert answer != label
    assert int(label) in case.labels


@pytest.mark.longer
def test_a_file_in_which_nothing_is_broken_has_no_line_to_paste(tmp_path: Path) -> None:
    case = honest_case()
    evidence = saved(case, tmp_path / "it.npz")
    assert "import numpy" in page(case, evidence)
    evidence["adversarial"] |= {"broken": 0, "example": None}
    assert "None of them is broken." in page(case, evidence)
    assert "import numpy" not in page(case, evidence)


def test_nothing_is_saved_unless_it_is_asked_for() -> None:
    assert "adversarial" not in masked_case().evidence
    assert "import numpy" not in page(masked_case(), masked_case().evidence)


def test_a_file_that_cannot_be_written_spoils_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    evidence = saved(masked_case(), tmp_path / "taken" / "it.npz")
    assert "Error" in evidence["adversarial"]["error"]
    assert "error" not in evidence["pictures"]
    assert "could not be made: " in page(masked_case(), evidence)


@pytest.mark.longer
@pytest.mark.parametrize(("names", "shown"), [("ant bee cow dog eel", True), ("ant bee", False), ("", False)])
def test_pictures_have_the_names_of_classes(names: str, shown: bool) -> None:
    case = masked_case()
    count = case.defense.model(IMAGES[:1]).shape[1]
    given = names.split()[:count]
    evidence = collect_evidence(case.audit, case.defense, IMAGES, case.labels, threat=THREAT, class_names=given)
    text = page(case, evidence)
    for each in evidence["pictures"]["images"]:
        assert each["label_name"] == (given[each["label"]] if shown else "")
        assert each["clean"]["name"] == each["label_name"]
        assert (f"clean: {each['label_name']} (" in text) is shown
        assert (f"clean: class {each['label']} (" in text) is not shown
    assert ("names of classes are known" in text) is (bool(given) and not shown)


def test_files_of_different_tests_have_different_names() -> None:
    tests = ["a/b.py::test[x]", "a-b.py::test[x]", "a/b.py::test[y]", "a/b.py::test[" + 300 * "z" + "]"]
    names = {file_name(test, number) for test in tests for number in (1, 2)}
    assert len(names) == 8
    assert all(re.fullmatch(r"[\w.-]{1,150}\.npz", name) for name in names)
    assert any(name.startswith("a-b.py-test-x-") for name in names)
