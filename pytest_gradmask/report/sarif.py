"""Audits as SARIF 2.1.0, for code scanning: a result at each line that hides a gradient."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from pytest_gradmask.execution.files import replaced
from pytest_gradmask.execution.versions import versions
from pytest_gradmask.report.explanations import explanation
from pytest_gradmask.report.wording import plain_spaces, shown_verdict, verdict_sentence

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
#: Verdicts that are results: their severity and their rule's description. The others are as they should be.
_RULES = {
    "MASKED": ("error", "The defense masks its gradients: its robust accuracy under gradient attacks is an artefact."),
    "ERROR": ("warning", "The audit raised an error and has measured nothing."),
    "INCONCLUSIVE": ("warning", "The audit could not decide whether the defense masks its gradients."),
}


def sarif(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run in its JSON form as a SARIF log.

    A ``MASKED`` is at the lines that hide the gradient, where they are known, and otherwise at the test. A mask that
    the test expects is no result.
    """
    found = [result for audit in run["audits"] for result in _results(audit)]
    used = sorted({result["ruleId"] for result in found})
    driver = {
        "name": "pytest-gradmask",
        "version": versions("pytest-gradmask").get("pytest-gradmask", ""),
        "rules": [_rule(name) for name in used],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": found}]}


def _results(audit: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    verdict = shown_verdict(audit)
    if verdict not in _RULES:
        return
    places = [(each["file"], each["line"], each["name"]) for each in audit["operations"]] if verdict == "MASKED" else []
    for file, line, name in places or [(audit["test"].partition("::")[0], 1, "")]:
        hides = f"{name} hides the gradient. " if name else ""
        text = plain_spaces(f"{hides}{verdict_sentence(audit)}")
        identity = "\n".join((verdict, audit["test"], audit["defense"], file, name))
        yield {
            "ruleId": f"gradmask/{verdict}",
            "level": _RULES[verdict][0],
            "message": {"text": text},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": PurePath(file).as_posix()},
                        "region": {"startLine": max(line, 1)},
                    }
                }
            ],
            # Without the line, so that a result stays the same one if code above it changes.
            "partialFingerprints": {"audit/v1": hashlib.sha256(identity.encode()).hexdigest()},
        }


def _rule(name: str) -> dict[str, Any]:
    verdict = name.partition("/")[2]
    level, text = _RULES[verdict]
    rule: dict[str, Any] = {
        "id": name,
        "shortDescription": {"text": text},
        "defaultConfiguration": {"level": level},
    }
    page = explanation("hidden-gradient") if verdict == "MASKED" else ""
    return {**rule, "help": {"text": page, "markdown": page}} if page else rule


def write_sarif(file: Path, run: Mapping[str, Any]) -> None:
    """Write the SARIF log of a run in one atomic step."""
    with replaced(file) as part:
        part.write_text(json.dumps(sarif(run), indent=2) + "\n", encoding="utf-8")
