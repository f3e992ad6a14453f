"""The published schema of ``--gradmask-json``: real files match it, and it allows no other fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_gradmask.defense import Defense
from pytest_gradmask.report.json import SCHEMA, VERSION, to_json, write_json
from pytest_gradmask.threat import ThreatModel
from tests.plugin.test_reporting import RUN, TESTS
from tests.report.report_toys import plain_audit, plain_run
from tests.toys import Noisy, audited, linear

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'pytest-gradmask[test]'")

EVERY_VERDICT = (
    TESTS
    + """
    def test_one_image(gradmask):
        model = linear()
        assert_no_gradient_masking(gradmask.audit(model, *batch(model, 1)))

    def test_train_mode(gradmask):
        model = linear()
        images, labels = batch(model)
        gradmask.audit(model.train(), images, labels)
"""
)


def validate(run: Any) -> None:
    validator = jsonschema.Draft202012Validator
    validator.check_schema(SCHEMA)
    validator(SCHEMA, format_checker=validator.FORMAT_CHECKER).validate(run)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object of the schema that has fields, however deep."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no such attack")


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """A run as Python sees it: an undefended model under an attack that fails, and a randomized one."""
    crashing = audited(Defense(linear(), attacks=(failing,)), threat=ThreatModel(0.01))
    assert crashing.attack("failing").status == "failed"
    noisy = audited(Noisy(linear(), 3.0).eval(), threat=ThreatModel(0.01), exhaustive=True)
    return plain_run(to_json(crashing), to_json(noisy))


@pytest.mark.longer
def test_every_verdict_matches_the_schema(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=EVERY_VERDICT)
    pytester.runpytest(*RUN, "--gradmask-json=out.json").assert_outcomes(passed=2, failed=2)
    found = json.loads((pytester.path / "out.json").read_text())
    validate(found)
    verdicts = [audit["verdict"] for audit in found["audits"]]
    assert sorted(verdicts) == ["INCONCLUSIVE", "INCONCLUSIVE", "MASKED", "NOT_MASKED"]
    assert (found["complete"], found["exit_status"], found["not_run"]) == (True, 1, [])
    for audit in found["audits"]:
        assert sum(audit["per_image"]["robust"]) == pytest.approx((audit["all_attacks"] or {"count": 0})["count"])


def test_a_partial_run_matches_the_schema(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_first(gradmask): raise RuntimeError\ndef test_second(gradmask): pass")
    pytester.runpytest(*RUN, "--gradmask-json=out.json", "-x")
    found = json.loads((pytester.path / "out.json").read_text())
    validate(found)
    assert not found["complete"]


def test_failed_attacks_and_randomized_defenses_match(run: dict[str, Any]) -> None:
    validate(run)
    crashing, noisy = run["audits"]
    assert crashing["robust_accuracy"]["failing"]["value"] is None
    assert noisy["autoattack_rand"] is not None
    assert any(0 < chance < 1 for chance in noisy["per_image"]["robust"])


@pytest.mark.parametrize(
    "where",
    [(), ("provenance",), ("provenance", "settings"), ("audits", 0), ("audits", 0, "robust_accuracy", "failing"),
     ("audits", 0, "gap"), ("audits", 0, "per_image"), ("audits", 0, "provenance"), ("audits", 0, "clean_accuracy")],
    ids=str,
)  # fmt: skip
def test_an_unknown_field_is_refused(run: dict[str, Any], where: tuple[Any, ...]) -> None:
    changed = json.loads(json.dumps(run))
    found = changed
    for key in where:
        found = found[key]
    found["undescribed"] = 1
    with pytest.raises(jsonschema.ValidationError, match="undescribed"):
        validate(changed)


@pytest.mark.parametrize(
    ("key", "value"), [("verdict", "PROBABLY"), ("images", -1), ("margin", 1.5), ("per_image", {}), ("gap", 0)]
)
def test_a_value_out_of_range_is_refused(run: dict[str, Any], key: str, value: Any) -> None:
    changed = json.loads(json.dumps(run))
    changed["audits"][0][key] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(changed)


def test_handmade_audits_match_the_schema() -> None:
    validate(plain_run(plain_audit(), plain_audit(verdict="MASKED", robust=[0.5, 1])))


def test_every_field_is_described_required_and_closed() -> None:
    found = list(objects(SCHEMA))
    assert len(found) == 12
    for each in found:
        assert each["additionalProperties"] is False
        required = each.get("required") or each["anyOf"][1]["required"]
        assert set(required) == set(each["properties"])
        for name, field in each["properties"].items():
            assert "description" in field or "description" in SCHEMA["$defs"][field["$ref"].rpartition("/")[2]], name


def test_the_version_is_that_of_the_schema(run: dict[str, Any]) -> None:
    assert run["version"] == VERSION == SCHEMA["properties"]["version"]["const"]


def test_numbers_of_an_array_share_a_line(run: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", run)
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text) == run
    assert re.search(r'"clean": \[ ?[01](, [01])+ ?\]', text)
    assert len(text.splitlines()) < 750


def test_the_wheel_carries_the_schema() -> None:
    from importlib.resources import files

    assert json.loads(files("pytest_gradmask.report").joinpath("schema.json").read_text()) == SCHEMA
