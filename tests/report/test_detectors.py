"""Reports of a defense with a reject option: what is rejected, and the accuracy on what is accepted."""

from __future__ import annotations

import pytest

from pytest_gradmask.report.failure import explain
from pytest_gradmask.report.html import render
from pytest_gradmask.report.json import SCHEMA, to_json
from tests.auditing.detector_toys import perfect_audit
from tests.report.report_toys import plain_run


def test_reports() -> None:
    audit = perfect_audit(declared=True)
    text = explain(audit, "NOT_MASKED")
    assert "(none), of accepted" in text
    assert "Rejected, and so not broken: 60 of pgd" in text
    plain = to_json(audit)
    assert plain["clean_rejected"]["count"] == 0
    assert plain["selective_accuracy"]["value"] == 1
    assert plain["robust_accuracy"]["pgd"]["rejected"] == 60
    run = plain_run(plain)
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'pytest-gradmask[test]'")
    jsonschema.Draft202012Validator(SCHEMA).validate(run)
    page = render([{"audit": plain, "evidence": {}}], [], run["provenance"])
    assert "no attack, correct of accepted" in page
    assert "60 of its images are rejected and so not broken" in page
